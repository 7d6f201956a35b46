"""Folders of the families that do not load: one line that says what is wrong and what would be right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bld.errors import ModelUnavailable
from bld.models.load import load_model


def refused(folder: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load_model(str(folder), device="cpu")
    return str(caught.value)


def rewritten(folder: Path, target: Path, **facts: Any) -> Path:
    """A copy whose model_index.json says something else."""
    shutil.copytree(folder, target)
    path = target / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    return target


def test_a_model_for_another_task_is_refused_with_what_loads(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    message = refused(
        rewritten(checkpoints("sd1"), tmp_path / "a", _class_name="StableDiffusionInpaintPipeline")
    )
    assert "an inpainting model, which is not for blending" in message
    message = refused(rewritten(checkpoints("sd1"), tmp_path / "b", _class_name="KandinskyPipeline"))
    assert "made for KandinskyPipeline" in message
    assert "FluxPipeline" in message


def test_a_part_of_another_class_is_refused(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewritten(checkpoints("sdxl"), tmp_path / "a", unet=["diffusers", "UNet3DConditionModel"])
    assert "its unet is a UNet3DConditionModel, expected a UNet2DConditionModel" in refused(folder)


@pytest.mark.parametrize("name", ["sdxl", "ldm", "flux-dev"])
def test_a_missing_part_is_named(name: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewritten(checkpoints(name), tmp_path / "a")
    part = {"sdxl": "text_encoder_2", "ldm": "bert", "flux-dev": "transformer"}[name]
    shutil.rmtree(folder / part)
    assert f"its {part} is missing" in refused(folder)
