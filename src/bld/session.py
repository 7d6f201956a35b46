"""An editing session: edits one after the other on the same photograph, with undo, redo and branches."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bld.editor import Editor, EditResult
from bld.errors import InvalidInput
from bld.images import Photograph, Source, open_photograph, save_png, write_text_atomic
from bld.options import FIELDS, EditOptions

FORMAT = 1
INDEX = "session.json"


@dataclass(frozen=True, eq=False)
class Revision:
    """One state of the picture. made: what made it from its parent (prompt, options, seed, model), or
    nothing for the photograph itself.
    """

    photograph: Photograph
    parent: int | None
    made: dict[str, Any]


class Session:
    """A tree of revisions, and the one that is worked on. Revisions are never changed or dropped.

    session = Session(open_photograph("room.jpg", max_pixels=10**8))
    session.add(editor.edit(session.photograph, "table.png", "a cactus"))
    session.undo()
    session.add(editor.edit(session.photograph, "wall.png", "a clock"))  # a second branch
    session.save("room-session")

    Each edit starts from the revision's pixels as they are, in their own depth and colour space: with a
    reconstruction that keeps the background (stitch, poisson), what no mask has covered stays the
    photograph's to the byte, however many edits there are.
    """

    def __init__(self, photograph: Photograph) -> None:
        self.revisions = [Revision(photograph, None, {})]
        self.current = 0
        self._latest: dict[int, int] = {}  # where redo goes from a revision

    @property
    def photograph(self) -> Photograph:
        """The picture as it is now."""
        return self.revisions[self.current].photograph

    @property
    def can_undo(self) -> bool:
        return self.revisions[self.current].parent is not None

    @property
    def can_redo(self) -> bool:
        return self.current in self._latest

    def edit(
        self, editor: Editor, mask: Source, prompt: str, *, choose: int = 0, **options: Any
    ) -> EditResult:
        """Edit the current picture and go on with candidate `choose`; options as in `Editor.edit`.

        Raises InvalidInput as `Editor.edit` does, and for a candidate that the edit will not have.
        """
        asked = options.get("options") or EditOptions(**{k: v for k, v in options.items() if k in FIELDS})
        finished = asked.finalists if editor.ranker and asked.finalists else asked.candidates
        _check_choice(choose, min(finished, asked.candidates))
        result = editor.edit(self.photograph, mask, prompt, **options)
        self.add(result, choose=choose)
        return result

    def add(self, result: EditResult, *, choose: int = 0, scribble: Photograph | None = None) -> int:
        """Go on with a candidate of an edit of the current picture; returns the new revision's number.

        scribble: the current picture with colours painted into it, within the mask, if that was edited.
        Raises InvalidInput for a result of another picture, or a candidate that it does not have.
        """
        if result.photograph is not (scribble or self.photograph):
            raise InvalidInput("the result is not an edit of the session's current picture: edit that one")
        _check_choice(choose, len(result.candidates))
        chosen = result.candidates[choose]
        made = {
            "prompt": result.prompt,
            "model": result.model,
            "revision": result.revision,
            "candidate": choose,
            "seed": chosen.seed,
            "options": dataclasses.asdict(result.options),
            **({"scribble": True} if scribble else {}),
        }
        self.revisions.append(Revision(chosen.photograph, self.current, made))
        return self.go_to(len(self.revisions) - 1)

    def go_to(self, number: int) -> int:
        """Work on any revision; an edit there begins a branch. Raises InvalidInput if there is none."""
        if not 0 <= number < len(self.revisions):
            raise InvalidInput(f"revision {number}: there are 0 to {len(self.revisions) - 1}")
        child, parent = number, self.revisions[number].parent
        while parent is not None:  # redo comes back this way
            self._latest[parent] = child
            child, parent = parent, self.revisions[parent].parent
        self.current = number
        return number

    def undo(self) -> int:
        """Go back to what the current picture was made from. Raises InvalidInput at the photograph."""
        parent = self.revisions[self.current].parent
        if parent is None:
            raise InvalidInput("nothing to undo: this is the photograph")
        self.current = parent
        return parent

    def redo(self) -> int:
        """Take back an undo, along the branch that was last worked on. Raises InvalidInput at its end."""
        if self.current not in self._latest:
            raise InvalidInput("nothing to redo: this is the end of the branch")
        self.current = self._latest[self.current]
        return self.current

    def branches(self, number: int | None = None) -> list[int]:
        """The revisions that were made from one (default: the current one), oldest first."""
        at = self.current if number is None else number
        return [i for i, revision in enumerate(self.revisions) if revision.parent == at]

    def save(self, folder: str | Path) -> None:
        """Write every revision as a lossless PNG, and session.json last: it names only what is there.

        Revisions that an earlier save left are not written again. Raises InvalidInput for a folder that
        holds another session, or pictures of these names that are not the session's.
        """
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"{target}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        kept = _index(target)["revisions"] if (target / INDEX).exists() else []
        entries = [self._entry(i) for i in range(len(self.revisions))]
        if kept != entries[: len(kept)]:
            raise InvalidInput(f"{target} holds another session: choose another folder")
        for entry, revision in zip(entries[len(kept) :], self.revisions[len(kept) :], strict=True):
            path = target / entry["file"]
            if path.exists() and not _is_picture(path, revision.photograph):
                raise InvalidInput(f"{path}: not of this session: move it, or choose another folder")
        for entry, revision in zip(entries, self.revisions, strict=True):
            if not (target / entry["file"]).exists():
                save_png(target / entry["file"], revision.photograph)
        latest = [list(pair) for pair in self._latest.items()]
        index = {"format": FORMAT, "current": self.current, "latest": latest, "revisions": entries}
        write_text_atomic(target / INDEX, json.dumps(index, indent=2, ensure_ascii=False) + "\n")

    def _entry(self, number: int) -> dict[str, Any]:
        revision = self.revisions[number]
        return {
            "file": f"{number:03d}.png",
            "sha256": _digest(revision.photograph),
            "parent": revision.parent,
            "made": revision.made,
        }

    @classmethod
    def load(cls, folder: str | Path, *, max_pixels: int = EditOptions().max_pixels) -> Self:
        """Read a saved session: the same pixels, the same tree. Raises InvalidInput for anything else."""
        source = Path(folder)
        index = _index(source)
        try:
            pictures = [
                open_photograph(source / e["file"], max_pixels=max_pixels) for e in index["revisions"]
            ]
            for picture, entry in zip(pictures, index["revisions"], strict=True):
                if _digest(picture) != entry["sha256"]:
                    raise ValueError(f"{entry['file']} is another picture")
            session = cls(pictures[0])
            session.revisions = [
                Revision(picture, entry["parent"], entry["made"])
                for picture, entry in zip(pictures, index["revisions"], strict=True)
            ]
            session._latest = dict(index["latest"])
            session.current = index["current"]
            _check_tree(session)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InvalidInput(f"{source / INDEX}: damaged ({error})") from error
        return session


def _check_choice(choose: int, candidates: int) -> None:
    if not 0 <= choose < candidates:
        raise InvalidInput(f"candidate {choose}: there are 0 to {candidates - 1}")


def _digest(photograph: Photograph) -> str:
    """sha256 of the pixels and of the alpha."""
    total = hashlib.sha256(photograph.pixels.tobytes())
    if photograph.alpha is not None:
        total.update(photograph.alpha.tobytes())
    return total.hexdigest()


def _is_picture(path: Path, photograph: Photograph) -> bool:
    """Whether a file holds that picture, as a save that was broken off may have left it."""
    height, width = photograph.size
    try:
        return _digest(open_photograph(path, max_pixels=height * width)) == _digest(photograph)
    except InvalidInput:
        return False


def _check_tree(session: Session) -> None:
    """Raise ValueError unless every parent comes before its child, and redo goes from parent to child."""
    revisions, latest = session.revisions, session._latest
    parents = [revision.parent for revision in revisions]
    mentioned = [session.current, *latest, *latest.values(), *parents[1:]]
    if not all(type(number) is int and 0 <= number < len(revisions) for number in mentioned):
        raise ValueError("it speaks of revisions that it does not have")
    later = [n for n, parent in enumerate(parents[1:], start=1) if parent is None or parent >= n]
    if parents[0] is not None or later:
        raise ValueError(f"the parent of revision {later[0] if later else 0} does not come before it")
    for parent, child in latest.items():
        if parents[child] != parent:
            raise ValueError(f"revision {child} was not made from {parent}")


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}, this version reads {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path}: not a saved session ({error})") from error
    return index
