"""The tiny model that unit tests share."""

from pathlib import Path

import pytest

from bld import Editor
from bld.models.load import load_model
from bld.models.unet import UNetModel
from tests.tiny import tiny_folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion folder of random weights. Tests that damage one damage a copy."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny: Path) -> UNetModel:
    model = load_model(str(tiny), device="cpu")
    assert isinstance(model, UNetModel)
    return model


@pytest.fixture(scope="session")
def tiny_editor(tiny_model: UNetModel) -> Editor:
    return Editor(tiny_model)
