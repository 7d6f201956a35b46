from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import tiny_folder

SIZE = (90, 120)  # height, width


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
