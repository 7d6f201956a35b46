"""Folders of the families that do not load: one line that says what is wrong and what would be right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bld import Editor
from bld.errors import ModelUnavailable
from bld.models.load import load_model
from tests.families import SDXL, sd3, sdxl


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


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [
        ("EDMEulerScheduler", "v_prediction"),  # CosXL
        ("EDMDPMSolverMultistepScheduler", "epsilon"),  # Playground 2.5
        ("DPMSolverMultistepScheduler", "flow_prediction"),
        ("FlowMatchEulerDiscreteScheduler", "epsilon"),
    ],
)
def test_a_unet_of_other_noise_is_refused(kind: str, prediction: str, tmp_path: Path) -> None:
    """On the levels of DDPM its pictures would be noise."""
    message = refused(sdxl(tmp_path / "a", {**SDXL, "_class_name": kind, "prediction_type": prediction}))
    assert f"its scheduler, {kind}, is of a UNet that predicts {prediction} on other noise levels" in message


def test_a_crop_is_no_longer_than_the_network_has_places_for(tmp_path: Path) -> None:
    """Stable Diffusion 3's transformer counts its patches up to 192, three times its native 64."""
    editor = Editor.from_pretrained(sd3(tmp_path / "sd3", t5=False, places=12), device="cpu")
    assert editor.model.max_aspect == 3
    photo, mask = np.full((40, 400, 3), 99, np.uint8), np.ones((40, 400), bool)
    made = editor.edit(photo, mask, "a cat", seed=0, steps=1, candidates=1)
    assert made.crop.size[1] == 3 * editor.model.native_size


@pytest.mark.parametrize("name", ["sdxl", "ldm", "flux-dev"])
def test_a_missing_part_is_named(name: str, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = rewritten(checkpoints(name), tmp_path / "a")
    part = {"sdxl": "text_encoder_2", "ldm": "bert", "flux-dev": "transformer"}[name]
    shutil.rmtree(folder / part)
    assert f"its {part} is missing" in refused(folder)
