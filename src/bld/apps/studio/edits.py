"""Running an edit for a visitor: one at a time on the model, told as it goes on, stopped within a step."""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from PIL import Image

from bld.apps.studio.canvas import data_url, reduced
from bld.apps.studio.visit import Job
from bld.editor import Editor, EditResult, Preview
from bld.errors import Cancelled
from bld.images import Photograph
from bld.masks import Box

STAGES = {
    "encode": "Encoding the photograph",
    "blend": "Denoising",
    "decode": "Decoding",
    "rank": "Ranking",
    "reconstruct": "Restoring the background",
}
PREVIEW_EVERY = 1.0  # s, at least
PREVIEW_SHARE = 0.2  # of the time, at most: a preview runs the decoder
PREVIEW_SIDE = 384  # px
POLL = 0.1  # s, how often one who waits for the model looks whether it is still wanted


@dataclass(frozen=True)
class Working:
    """How far an edit is. seconds_left: of this stage, None before that can be told. preview: data URL."""

    stage: str
    done: int
    total: int
    seconds_left: float | None = None
    preview: str | None = None


Update = Working | EditResult | BaseException


class Reporter:
    """What the editor calls as it goes on: tells the visitor, and ends the edit if that is what they want."""

    def __init__(self, job: Job, updates: "queue.Queue[Update]") -> None:
        self.job, self.updates = job, updates
        self.last = Working("", 0, 1)
        self.started = self.next_preview = 0.0
        self.first = 0  # count that the stage began with

    def progress(self, stage: str, done: int, total: int) -> None:
        """As `Editor.edit` calls it."""
        self._stop_if_cancelled()
        now = time.perf_counter()
        if stage != self.last.stage:
            self.started, self.first = now, done
        steps = done - self.first
        left = (now - self.started) / steps * (total - done) if steps else None
        self._tell(Working(stage, done, total, left, self.last.preview))

    def preview(self, preview: Preview) -> None:
        """As `Editor.edit` calls it. Most are not looked at: the decoder costs time."""
        self._stop_if_cancelled()
        began = time.perf_counter()
        if began < self.next_preview:
            return
        picture = data_url(close_up(preview.photograph(), self.job.box, PREVIEW_SIDE))
        now = time.perf_counter()
        self.next_preview = now + max(PREVIEW_EVERY, (now - began) / PREVIEW_SHARE)
        self._tell(replace(self.last, preview=picture))

    def _stop_if_cancelled(self) -> None:
        if self.job.cancelled.is_set():
            raise Cancelled("cancelled")

    def _tell(self, working: Working) -> None:
        self.last = working
        self.updates.put(working)


class Runner:
    """Runs the edits of all visitors on one editor, one after the other."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self._model = threading.Lock()

    def run(self, job: Job) -> Iterator[Working | EditResult]:
        """Edit; yields how far it is, and the result last.

        Updates that nobody came to fetch are left out. Raises what the edit raises, and Cancelled once
        the job is. If this is closed early, the edit is cancelled.
        """
        updates: queue.Queue[Update] = queue.Queue()
        worker = threading.Thread(target=self._work, args=(job, updates), daemon=True)
        worker.start()
        try:
            while True:
                update = updates.get()
                while not updates.empty():
                    update = updates.get()
                if isinstance(update, BaseException):
                    raise update
                yield update
                if isinstance(update, EditResult):
                    return
        finally:
            job.cancelled.set()

    def _work(self, job: Job, updates: "queue.Queue[Update]") -> None:
        reporter = Reporter(job, updates)
        try:
            with self._turn(job):
                result = self.editor.edit(
                    job.source, job.mask, job.prompt, options=job.options,
                    progress=reporter.progress, preview=reporter.preview,
                )  # fmt: skip
            updates.put(result)
        except BaseException as error:  # it belongs to the visitor's thread
            updates.put(error)

    @contextmanager
    def _turn(self, job: Job) -> Iterator[None]:
        """Wait for the model, as long as the job is wanted."""
        while not self._model.acquire(timeout=POLL):
            if job.cancelled.is_set():
                raise Cancelled("cancelled")
        try:
            yield
        finally:
            self._model.release()


def close_up(photograph: Photograph, box: Box, longest: int) -> Image.Image:
    """A part of a photograph in sRGB, its longer side at most `longest`."""
    alpha = None if photograph.alpha is None else photograph.alpha[box.slices]
    part = Photograph(photograph.pixels[box.slices], alpha, photograph.icc_profile)
    scale = min(1.0, longest / max(part.size))
    height, width = (max(1, round(side * scale)) for side in part.size)
    return reduced(part, (height, width))
