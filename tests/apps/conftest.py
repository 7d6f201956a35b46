import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bld.apps import cli
from bld.apps.batch.job import Tally, run
from tests.apps.batches import Here, job, pictures, row
from tests.tiny import tiny_folder

SIZE = (90, 120)  # height, width
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    values = np.zeros(SIZE, np.uint8)
    values[20:60, 30:80] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def bld(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bld", *map(str, words)])
        capsys.readouterr()
        code = cli.main()
        return (code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def worker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    folder = tmp_path_factory.mktemp("first")
    yield Here(job(folder, [row(0)], model, folder).work)
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["OMP_NUM_THREADS"]


@pytest.fixture(scope="module")
def undisturbed(worker: Here, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of ten rows that nothing came in the way of: three units, of 4, 4 and 2."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pictures(folder)
    asked = job(folder, [row(i) for i in range(10)], model, folder / "out")
    assert run(asked, worker.at(asked.work)) == Tally(10, 0, 0, 0)
    return folder
