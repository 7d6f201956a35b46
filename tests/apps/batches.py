"""Manifests to run, workers to run them, and how to compare what comes of it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bld.apps.batch.files import Files
from bld.apps.batch.job import Job
from bld.apps.batch.work import Work, Worker, begin
from bld.options import BatchOptions, LoadOptions

COMMON = {"steps": 2, "candidates": 1}
SIZE = (80, 96)
PROMPTS = ("a red apple", "a guitar on a table", "a photo of a cat")


def pictures(folder: Path, count: int = 3) -> None:
    """photo0.png ... and mask0.png ..., all of one size."""
    draw = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(draw.integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / f"photo{i}.png")
        mask = np.zeros(SIZE, np.uint8)
        mask[10 + 5 * i : 50, 20 : 60 + 5 * i] = 255
        Image.fromarray(mask).save(folder / f"mask{i}.png")


def row(i: int, **values: Any) -> dict[str, Any]:
    """The i-th row of a manifest, on three photographs and three masks."""
    asked = {"image": f"photo{i % 3}.png", "mask": f"mask{i // 3 % 3}.png", "prompt": PROMPTS[i % 3]}
    return {"id": f"r{i:02d}", **asked, **values}


def manifest(folder: Path, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def job(folder: Path, rows: Sequence[dict[str, Any]] | Path, model: Path, output: Path, **batch: Any) -> Job:
    """A job of a manifest that is there, or of rows that are written to one."""
    work = Work(
        model=str(model), ranker="none", loading=LoadOptions(device="cpu"), common=tuple(COMMON.items()),
        output=str(output), stage=str(output / ".stage"), files=Files(), threads=1, metadata=True,
        dry_run=False,
    )  # fmt: skip
    path = rows if isinstance(rows, Path) else manifest(folder, rows)
    return Job(manifest=path, output=output, work=work, common=COMMON, batch=BatchOptions(**batch))


class Here:
    """A pool of one worker in this process, which keeps its model from job to job."""

    def __init__(self, work: Work) -> None:
        self.worker = begin(work)
        self.units: list[tuple[str, ...]] = []

    def at(self, work: Work) -> "Here":
        """The same model for another job."""
        assert isinstance(self.worker, Worker)
        self.worker.work, self.worker.common = work, dict(work.common)
        self.units.clear()
        return self

    def map(self, method: str, arguments: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for place, argument in enumerate(arguments):
            if method == "edit":
                self.units.append(tuple(row.id for row in argument))
            yield place, getattr(self.worker, method)(argument)


def results(output: Path) -> dict[str, bytes]:
    """Every file of every edit; of its record all but the seconds."""
    found = {}
    for path in sorted((output / "edits").rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "edit.json":
                facts = json.loads(content)
                assert facts.pop("seconds")
                content = json.dumps(facts).encode()
            found[str(path.relative_to(output / "edits"))] = content
    return found


def statuses(output: Path, name: str = "index.parquet") -> dict[str, str]:
    """What the index says of each row."""
    return {line["id"]: line["status"] for line in index(output, name)}


def index(output: Path, name: str = "index.parquet") -> list[dict[str, Any]]:
    import pyarrow.parquet

    lines: list[dict[str, Any]] = pyarrow.parquet.read_table(output / name).to_pylist()
    return lines
