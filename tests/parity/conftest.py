"""The models that run beside diffusers: two of random weights, and the bundled one."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from bld.models.load import find, load_model
from bld.models.unet import UNetModel
from tests.tiny import SD1_SCHEDULER, tiny_folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by name; "tiny" has the bundled model's scheduler, "sd1" Stable Diffusion 1's."""
    target = tmp_path_factory.mktemp("models")
    return {
        "tiny": tiny_folder(target / "tiny"),
        "sd1": tiny_folder(target / "sd1", scheduler=SD1_SCHEDULER),
        "mini": find("mini"),
    }


@pytest.fixture(scope="session")
def loaded(folders: dict[str, Path]) -> Callable[[str], UNetModel]:
    """A model of `folders`, on the CPU. Without the bundled one its tests fail: it is in the package."""

    @cache
    def by_name(name: str) -> UNetModel:
        model = load_model("mini" if name == "mini" else str(folders[name]), device="cpu")
        assert isinstance(model, UNetModel)
        return model

    return by_name
