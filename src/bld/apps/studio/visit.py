"""Visits: what each visitor has on the table, kept apart from everyone else's and removed when they leave."""

import os
import secrets
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bld.apps.studio.canvas import Bytes, Painting, merged, scribbled, shown
from bld.editor import EditResult
from bld.errors import InvalidInput
from bld.images import Photograph
from bld.masks import Box
from bld.models.base import LatentModel
from bld.options import EditOptions
from bld.session import Session
from bld.task import check

GRACE = 600.0  # s, how long a visit whose page has gone is kept: phones drop connections
MASKS = 8  # how many earlier masks of the server's may be painted on, after an undo on the canvas


@dataclass(eq=False)
class Job:
    """An edit that was asked for.

    parent: the revision it edits. source: that, or it with a scribble. box: the part that the model sees.
    """

    parent: int
    source: Photograph
    box: Box
    mask: Bytes
    prompt: str
    options: EditOptions
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit that was made, and the folder that holds it as `bld edit` would have left it."""

    job: Job
    result: EditResult
    folder: Path
    thumbnails: tuple[Path, ...]


class Visit:
    """One visitor's photograph, mask and edits.

    place: a folder of theirs alone, with a name nobody can guess. folder: what they have open, within it.
    """

    def __init__(self, place: Path) -> None:
        self.place = self.folder = place
        self.session: Session | None = None
        self.name = "photograph"
        self.job: Job | None = None  # asked for, or running
        self.edit: Edit | None = None  # the last one
        self.edits = 0
        self.chosen = 0
        self.sent = 0  # counts what the canvas was given
        self._masks: dict[int, tuple[Bytes, Bytes]] = {}  # at the photograph's size, and as shown

    @property
    def open_session(self) -> Session:
        """The session. Raises InvalidInput before there is a photograph."""
        if self.session is None:
            raise InvalidInput("there is no photograph yet: open one, or drop it onto the canvas")
        return self.session

    @property
    def last_edit(self) -> Edit:
        """The edit whose candidates are shown. Raises InvalidInput before there is one."""
        if self.edit is None:
            raise InvalidInput("there is no result yet: make an edit first")
        return self.edit

    def start(self, photograph: Photograph, name: str) -> None:
        """Begin with another photograph; what was made of the one before is removed."""
        self.cancel()
        self.session, self.name = Session(photograph), name
        self.edit, self.edits, self.chosen = None, 0, 0
        self.clear_mask()
        shutil.rmtree(self.place, ignore_errors=True)
        self.folder = self.place / secrets.token_hex(8)  # another each time, or browsers show old pictures
        self.folder.mkdir(mode=0o700, parents=True)

    def clear_mask(self) -> None:
        """An empty mask, of the current picture's size."""
        self._masks.clear()
        self.put(np.zeros(self.open_session.photograph.size, np.uint8))

    def put(self, mask: Bytes) -> int:
        """Keep a mask to be painted on; returns its number."""
        self.sent += 1
        self._masks[self.sent] = (mask, shown(mask))
        for old in sorted(self._masks)[:-MASKS]:
            del self._masks[old]
        return self.sent

    def shown_mask(self) -> Bytes:
        """The latest mask at the canvas' size."""
        return self._masks[self.sent][1]

    def painted(self, painting: Painting) -> Bytes:
        """The mask at the photograph's size, with what was painted over it."""
        empty = np.zeros(self.open_session.photograph.size, np.uint8)
        mask, before = self._masks.get(painting.base) or (empty, np.zeros_like(painting.mask))
        return merged(mask, before, painting.mask)

    def ask(self, model: LatentModel, painting: Painting, prompt: str, options: EditOptions) -> Job:
        """A job for what is on the canvas. Raises InvalidInput for whatever cannot be edited as asked."""
        session, mask = self.open_session, self.painted(painting)
        source = scribbled(session.photograph, mask, painting.colours)
        task = check(model, source, mask, prompt, options)
        return Job(session.current, source, task.crop.box, mask, prompt, options)

    def cancel(self) -> None:
        """Stop what is asked for, or running, within a step."""
        if self.job is not None:
            self.job.cancelled.set()
            self.job = None

    def use(self) -> int:
        """Go on with the chosen candidate; returns the new revision's number."""
        edit, session = self.last_edit, self.open_session
        before = session.current
        session.go_to(edit.job.parent)  # an edit of an earlier picture begins a branch there
        try:
            scribble = edit.job.source if edit.job.source is not session.photograph else None
            return session.add(edit.result, choose=self.chosen, scribble=scribble)
        except InvalidInput:
            session.go_to(before)
            raise


class Visits:
    """All visits, by the session that the browser says it is.

    folder: where gradio puts what is uploaded, and a folder of visits. grace: see GRACE.
    """

    def __init__(self, folder: Path, grace: float = GRACE) -> None:
        self.folder, self.grace = folder, grace
        self._places = folder / "visits"
        self._visits: dict[str, Visit] = {}
        self._left: dict[str, float] = {}  # when their page went
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def of(self, session: str | None) -> Visit:
        """The visit of a browser's session; a new one if it has none."""
        key = session or secrets.token_hex(16)
        with self._lock:
            self._left.pop(key, None)
            if key not in self._visits:
                place = self._places / secrets.token_hex(16)
                place.mkdir(mode=0o700, parents=True)
                self._visits[key] = Visit(place)
            return self._visits[key]

    def jobs(self) -> int:
        """How many edits are asked for, or running."""
        with self._lock:
            return sum(visit.job is not None for visit in self._visits.values())

    def leave(self, session: str | None) -> None:
        """A page has gone: stop its edit now, and remove the rest unless it comes back soon."""
        with self._lock:
            if session in self._visits:
                self._visits[session].cancel()
                self._left[session] = time.monotonic()

    def sweep(self, now: float) -> None:
        """Remove the visits that were left long ago, and uploads that no page came for."""
        with self._lock:
            gone = [key for key, left in self._left.items() if now - left >= self.grace]
            places = [self._visits.pop(key).place for key in gone]
            for key in gone:
                del self._left[key]
        stale = time.time() - GRACE
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # an upload that is being read goes while we look
                if path != self._places and path.stat().st_mtime < stale:
                    places.append(path)
        for place in places:
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)

    def keep_swept(self) -> None:
        """Sweep every now and then, until it is closed."""

        def work() -> None:
            while not self._closed.wait(min(60.0, self.grace)):
                self.sweep(time.monotonic())

        threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Remove everything of everyone."""
        self._closed.set()
        with self._lock:
            for visit in self._visits.values():
                visit.cancel()
            self._visits.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def file_stem(name: str) -> str:
    """A file's name without its ending, with nothing in it that means something to a shell or a browser."""
    stem = Path(os.path.basename(name)).stem  # noqa: PTH119
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-")
    return kept[:60] or "photograph"
