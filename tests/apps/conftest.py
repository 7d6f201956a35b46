import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bld.apps import cli
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
