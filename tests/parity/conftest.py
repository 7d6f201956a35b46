"""The models that run beside diffusers: two of random weights, and the bundled one."""

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
def models(folders: dict[str, Path]) -> dict[str, UNetModel]:
    """The models of `folders`, on the CPU. An absent bundled model is an error: it is in the package."""
    loaded = {}
    for name, folder in folders.items():
        model = load_model("mini" if name == "mini" else str(folder), device="cpu")
        assert isinstance(model, UNetModel)
        loaded[name] = model
    return loaded
