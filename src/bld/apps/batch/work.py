"""What a worker does: it loads the model once, reads prompts, and turns units of rows into folders."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bld.apps.batch.files import Files, scheme
from bld.apps.batch.ledger import Outcome
from bld.apps.batch.manifest import Row
from bld.errors import BldError, InvalidInput
from bld.options import LoadOptions

if TYPE_CHECKING:
    from bld.editor import EditResult
    from bld.images import Photograph
    from bld.task import Task

EDITS = "edits"  # the folder of the results, a folder for each id in it


class OutputFailed(BldError):
    """The results cannot be written: no row's fault, and the end of the run."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a worker needs to know beside its rows. It travels to other processes and machines.

    common: options of every row. output: the absolute path of the job's folder. stage: of the folder in
    which results come to be, on the same file system. dry_run: nothing will be edited.
    """

    model: str
    ranker: str
    loading: LoadOptions
    common: tuple[tuple[str, Any], ...]
    output: str
    stage: str
    files: Files
    threads: int
    metadata: bool
    dry_run: bool


Text = tuple[str, str]
"""What it is, as messages have it ("prompt"), and the text."""


@dataclass(frozen=True)
class Reading:
    """revisions: of the weights. loading: what results depend on of how the model is loaded. refused: the
    texts that the model would not read to their ends, and why.
    """

    revisions: dict[str, str | None]
    loading: dict[str, Any]
    refused: dict[Text, str]


class Reader:
    """A model that reads prompts, without its weights: all that a dry run asks of it.

    Its methods are called by name, from the process that plans.
    """

    def __init__(self, work: Work) -> None:
        """Raises ModelUnavailable or InvalidInput for a model that cannot be loaded as asked."""
        _settle(work.threads)
        from bld.models.load import load_model

        self.work = work
        self.model = load_model(work.model, work.loading, weights=False)
        self.revisions: dict[str, str | None] = {"model": self.model.revision}

    def read(self, texts: Sequence[Text]) -> Reading:
        """Read texts as an edit would, and say what results depend on beside the options."""
        from bld.models.load import lasting
        from bld.task import excess, too_long

        refused = {}
        for what, text in texts:
            if cut := excess(self.model, text):
                refused[what, text] = too_long(self.model, what, cut)
        return Reading(self.revisions, lasting(self.work.loading), refused)


class Worker(Reader):
    """A loaded model that edits rows."""

    def __init__(self, work: Work) -> None:
        """Raises as `Reader`."""
        _settle(work.threads)
        from bld.editor import Editor

        self.work, self.common = work, dict(work.common)
        self._contents: dict[str, bytes] = {}  # of the unit in work, by URL
        self.editor = Editor.from_pretrained(work.model, ranker=work.ranker, options=work.loading)
        self.model, ranker = self.editor.model, self.editor.ranker
        self.revisions = {"model": self.model.revision, "ranker": ranker.revision if ranker else None}

    def edit(self, unit: Sequence[Row]) -> list[Outcome]:
        """Edit the rows of a unit and write their folders; a row that fails does so alone.

        What is there already is whole and stays as it is. Raises OutputFailed if a folder cannot be written.
        """
        if all(self._folder(row).exists() for row in unit):
            return [self._outcome(row) for row in unit]
        self._contents.clear()
        outcomes, ready = [], []
        photographs: dict[tuple[str, int], Photograph] = {}
        for row in unit:
            try:
                ready.append((row, self._task(row, photographs)))
            except Exception as error:
                outcomes.append(_failed(row, error))
        grids: dict[tuple[int, int], list[tuple[Row, Task]]] = {}
        for row, task in ready:
            grids.setdefault(task.grid, []).append((row, task))
        for same in grids.values():
            for row, result in self._edited(same):
                outcomes.append(
                    _failed(row, result) if isinstance(result, Exception) else self._placed(row, result)
                )
        return outcomes

    def _task(self, row: Row, photographs: "dict[tuple[str, int], Photograph]") -> "Task":
        """The row as a checked edit. A photograph of several rows is opened once."""
        from bld.images import open_photograph
        from bld.task import check

        options = row.options(self.common)
        key = (row.image, options.max_pixels)
        if key not in photographs:
            photographs[key] = open_photograph(
                self._source(row.image, "image"), max_pixels=options.max_pixels
            )
        mask = self._source(row.mask, "mask")
        return check(self.editor.model, photographs[key], mask, row.prompt, options)

    def _source(self, place: str, what: str) -> str | bytes:
        """A path as it is, the bytes behind a URL."""
        if not scheme(place):
            return place
        if place not in self._contents:
            self._contents[place] = self.work.files.read(place, what)
        return self._contents[place]

    def _edited(self, same: "Sequence[tuple[Row, Task]]") -> "Iterator[tuple[Row, EditResult | Exception]]":
        """The results of tasks that fit into one batch; if that fails, of each alone."""
        rows, tasks = [row for row, _ in same], [task for _, task in same]
        try:
            yield from zip(rows, self.editor.edit_together(tasks), strict=True)
            return
        except Exception as error:
            if len(same) == 1:
                yield rows[0], error
                return
        for one in same:
            yield from self._edited([one])

    def _placed(self, row: Row, result: "EditResult") -> Outcome:
        """The result as a folder, which takes its name once it is whole and on the disk."""
        from bld.apps.output import write
        from bld.apps.record import Inputs, record

        chosen = self.work.ranker if result.ranker else "none"
        try:
            sha256 = self._digest(row.image), self._digest(row.mask)
            facts = record(result, Inputs(row.image, row.mask, self.work.loading, chosen, sha256))
        except OSError as error:
            return _failed(row, InvalidInput(f"the image or mask went while it was edited ({error})"))
        try:
            Path(self.work.stage).mkdir(parents=True, exist_ok=True)
            stage = Path(tempfile.mkdtemp(prefix=f"{row.id}-", dir=self.work.stage))
            try:
                write(result, facts, stage, metadata=self.work.metadata)
                stage.chmod(0o755)
                take_name(stage, self._folder(row))
            finally:
                shutil.rmtree(stage, ignore_errors=True)
        except Exception as error:
            raise OutputFailed(
                f"{self.work.output}: cannot be written ({error}); what was done is kept: make room and run "
                "the same command again"
            ) from error
        return self._outcome(row)

    def _digest(self, place: str) -> str | None:
        """SHA-256 of what was behind a URL; None for a file, which the record reads itself."""
        return hashlib.sha256(self._contents[place]).hexdigest() if scheme(place) else None

    def _folder(self, row: Row) -> Path:
        return Path(self.work.output) / EDITS / row.id

    def _outcome(self, row: Row) -> Outcome:
        """What the record in a row's folder says of it."""
        from bld.apps.output import RECORD

        facts = json.loads((self._folder(row) / RECORD).read_text(encoding="utf-8"))
        best = facts["candidates"][0]
        return Outcome(
            number=row.number, id=row.id, status="done", seed=best["seed"], score=best["score"],
            background_max_error=best["background_max_error"],
            seconds=round(sum(facts["seconds"].values()), 3),
        )  # fmt: skip


def begin(work: Work) -> Reader:
    """A worker that can do all that the job asks for. Raises as `Reader`."""
    return Reader(work) if work.dry_run else Worker(work)


def _settle(threads: int) -> None:
    """What a worker's process needs before it loads a model."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch reads it
    import torch

    from bld.apps.progress import quiet_libraries

    torch.set_num_threads(threads)
    quiet_libraries()


def _failed(row: Row, error: Exception) -> Outcome:
    reason = str(error).strip().partition("\n")[0]
    named = reason if isinstance(error, BldError) else f"{type(error).__name__}: {reason}"
    return Outcome(number=row.number, id=row.id, status="failed", reason=named)


def take_name(stage: Path, folder: Path) -> None:
    """Give a finished folder its name, once everything in it is on the disk; one that is there stays.

    After a power cut the name stands for the whole folder, or is not there.
    """
    for path in (*stage.rglob("*"), stage):
        sync(path)
    try:
        stage.rename(folder)
    except OSError:
        if not folder.is_dir():  # another worker was first, with the same result
            raise
    sync(folder.parent)


def sync(path: Path) -> None:
    """Return once a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
