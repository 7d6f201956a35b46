"""The folder that an edit leaves: pictures, contact sheet and edit.json, all of it or nothing."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bld.apps.record import text_chunk
from bld.editor import Candidate, EditResult, Latents
from bld.errors import InvalidInput
from bld.images import Photograph, save_png, to_pil, write_text_atomic

if TYPE_CHECKING:
    from PIL import Image

RECORD = "edit.json"
ENTRIES = ("candidates", "result.png", "grid.png", RECORD, "latents.safetensors")
TILE, COLUMNS = 256, 6  # grid: largest side of a tile in px, tiles in a row


@contextmanager
def staged(
    folder: Path, entries: Sequence[str] = ENTRIES, *, record: str = RECORD, read: Sequence[str | Path] = ()
) -> Iterator[Path]:
    """A folder to write `entries`, `record` among them, into that takes its place as `folder` in the end.

    What an earlier run left there is replaced, other files stay. If the block fails, or is
    interrupted, nothing has changed. Raises InvalidInput at once if the folder cannot be written,
    holds files of these names without the record, or one of `read`, which would be lost.
    """
    made: list[Path] = []
    try:
        _refuse(folder, entries, record, read)
        if folder.exists() and not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
        made = _make_parents(folder)
        # Within the folder if there is one: it may be a mount, and nothing moves between file systems.
        place = folder if folder.exists() else folder.parent
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=place))
    except OSError as error:
        _remove(made)
        raise InvalidInput(
            f"--output {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        yield stage
        stage.chmod(0o755)
        _take_place(stage, folder, entries)
        made = []
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        _remove(made)


def _refuse(folder: Path, entries: Sequence[str], record: str, read: Sequence[str | Path]) -> None:
    """Raise InvalidInput if writing `entries` would cost a file: somebody's, or one that is read for it."""
    if os.path.lexists(folder) and not folder.is_dir():
        what = "a file of that name" if folder.exists() else "a link that leads nowhere"
        raise InvalidInput(f"--output {folder}: {what} is in the way; choose another folder")
    if not (folder / record).exists():
        foreign = [entry for entry in entries if (folder / entry).exists()]
        if foreign:
            raise InvalidInput(
                f"--output {folder}: {foreign[0]} is there, but no {record}, so bld did not write it; "
                "choose another folder"
            )
    for path in read:
        real = Path(path).resolve()
        if any(real.is_relative_to(folder.resolve() / entry) for entry in entries):
            raise InvalidInput(
                f"--output {folder}: {path} is read for this and would be replaced; choose another folder"
            )


def _make_parents(folder: Path) -> list[Path]:
    """Make the folders that `folder` lies in; returns those that were missing, innermost first."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove(folders: Sequence[Path]) -> None:
    """Remove empty folders; what another program has put something into stays."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _take_place(stage: Path, folder: Path, entries: Sequence[str]) -> None:
    """Move the stage, or what is in it, to where it belongs; on any failure, put the old things back."""
    if not folder.exists():
        try:
            stage.replace(folder)
        except OSError as error:  # unless another run has made it in between
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
    old = stage / ".old"
    old.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for entry in entries:
            for source, target in ((folder / entry, old / entry), (stage / entry, folder / entry)):
                if source.exists():
                    source.replace(target)
                    moved.append((source, target))
    except BaseException:
        for source, target in reversed(moved):
            target.replace(source)
        raise


def write(result: EditResult, facts: dict[str, Any], folder: Path, *, metadata: bool) -> None:
    """Write result.png, candidates/00.png ..., grid.png, latents and edit.json into `folder`."""
    (folder / "candidates").mkdir()
    for number, candidate in enumerate(result.candidates):
        text = text_chunk(facts, number) if metadata else None
        path = folder / "candidates" / f"{number:02d}.png"
        save_png(path, candidate.photograph, text=text)
        if number == 0:
            shutil.copyfile(path, folder / "result.png")
    grid(result).save(folder / "grid.png")
    write_latents(result.latents, folder / "latents.safetensors")
    write_text_atomic(folder / RECORD, json.dumps(facts, indent=2) + "\n")


def write_request(request: dict[str, Any], path: Path) -> None:
    """Beside the pictures of a run that leaves no edit: what was asked for, and which files are its own."""
    files = sorted([path.name, *(picture.name for picture in path.parent.iterdir())])
    write_text_atomic(path, json.dumps({"request": request, "files": files}, indent=2) + "\n")


def write_latents(latents: Latents, path: Path) -> None:
    """Keep what the decoder was given, so that the edit can be finished in another way."""
    from safetensors.torch import save_file

    tensors = {"z_init": latents.z_init, "z_0": latents.z_0}
    seeds = {"seeds": json.dumps(latents.seeds)}
    save_file({name: z.cpu().contiguous() for name, z in tensors.items()}, path, metadata=seeds)


def read_latents(path: Path, seeds: Sequence[int]) -> Latents:
    """What `write_latents` kept of candidates of these seeds. Raises InvalidInput for any other file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InvalidInput(f"{path}: no such file; give the output folder of bld edit")
    try:
        with safe_open(path, framework="pt") as file:
            kept = tuple(json.loads(file.metadata()["seeds"]))
            latents = Latents(file.get_tensor("z_init"), file.get_tensor("z_0"), kept)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: not the latents of an edit, or damaged ({error})") from error
    if kept != tuple(seeds) or len(latents.z_0) != len(kept):
        raise InvalidInput(
            f"{path} and {RECORD} are of two edits ({len(latents.z_0)} latents, {len(seeds)} candidates, "
            "and not the same seeds): edit anew"
        )
    return latents


def _label(number: int, candidate: Candidate) -> str:
    score = "" if candidate.score is None else f", score {candidate.score:.3f}"
    return f"{number}: seed {candidate.seed}{score}"


def grid(result: EditResult) -> "Image.Image":
    """Input, mask, the autoencoder's round trip and every candidate with its seed and score."""
    from bld.apps.contact import contact_sheet, fitted

    mask = np.repeat((result.mask * 255).astype(np.uint8)[..., None], 3, axis=2)
    tiles = [
        ("photograph", result.photograph),
        ("mask", Photograph(mask)),
        ("autoencoder", result.round_trip),
        *((_label(i, c), c.photograph) for i, c in enumerate(result.candidates)),
    ]
    pictures = [(label, fitted(to_pil(shown).convert("RGBA"), TILE)) for label, shown in tiles]
    return contact_sheet([pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)])
