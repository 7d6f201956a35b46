"""Every reconstruction at the end of an edit: grey and transparent files, masks at their extremes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from bld import Editor
from bld.options import EditOptions, Reconstruction
from bld.reconstruct import WAYS
from tests.tiny import GaussianModel

HEIGHT, WIDTH = 80, 96
EXACT = ("stitch", "poisson")


def mask(name: str) -> np.ndarray:
    """White where the edit goes: at a corner, everywhere, one pixel, or in the middle."""
    white = np.zeros((HEIGHT, WIDTH), bool)
    where = {
        "at the border": np.s_[40:, 60:],
        "everything": np.s_[:, :],
        "one pixel": np.s_[33:34, 47:48],
        "in the middle": np.s_[24:56, 32:64],
    }
    white[where[name]] = True
    return white


@pytest.fixture(params=["L", "RGB", "RGBA"])
def photo(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with a ramp from dark to light, and in RGBA another one from clear to opaque."""
    ramp = np.linspace(20, 120, WIDTH, dtype=np.uint8)[None].repeat(HEIGHT, 0)
    picture = Image.fromarray(ramp).convert(request.param)
    if request.param == "RGBA":
        picture.putalpha(Image.fromarray(ramp[:, ::-1].copy() + 100))
    picture.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("where", ["at the border", "everything", "one pixel", "in the middle"])
@pytest.mark.parametrize("way", WAYS)
def test_a_way_edits_the_mask_and_keeps_the_rest(way: Reconstruction, where: str, photo: Path) -> None:
    white, editor = mask(where), Editor(GaussianModel())
    result = editor.edit(
        photo, white, "red", candidates=1, seed=0, steps=4, reconstruct=way, feather=0,
        tune_steps=8, tune_lr=0.01,
    )  # fmt: skip
    before, after = result.photograph, result.best.photograph
    assert (after.pixels.shape, after.pixels.dtype) == (before.pixels.shape, before.pixels.dtype)
    assert after.alpha is before.alpha
    if way in EXACT:
        np.testing.assert_array_equal(after.pixels[~white], before.pixels[~white])
        assert result.best.fidelity.max_error == 0
    elif where != "everything":
        # The model's cells are the means of 8 px of a ramp that rises by one level each: 4 levels off
        # at most where no cell is edited, and the cells at the mask's edge are edited whole.
        off = np.abs(after.pixels.astype(float) - before.pixels).mean(-1)
        assert np.median(off[~white]) <= 5
    red, green, _ = np.moveaxis(after.pixels[white].astype(float), -1, 0)
    if way == "poisson" and where in ("at the border", "one pixel"):
        # The cells painted red reach over the mask's edge: along it both pictures are flat, and what
        # lies inside takes the photograph's colour.
        assert np.abs(after.pixels[white].astype(float) - before.pixels[white]).mean() < 60
    else:
        assert (red - green).mean() > 100


@pytest.mark.parametrize("way", ["latents", "decoder"])
def test_tuning_leaves_the_background_no_worse(way: Reconstruction, photo: Path) -> None:
    white, found = mask("in the middle"), {}
    for chosen in ("none", way):
        result = Editor(GaussianModel()).edit(
            photo, white, "red", candidates=1, seed=0, steps=4, reconstruct=chosen,
            tune_steps=20, tune_lr=0.01,
        )  # fmt: skip
        found[chosen] = result.best.fidelity.psnr
    assert found[way] >= found["none"] - 0.1, "at the best already, Adam's steps move it by a rounding"


@pytest.mark.parametrize("way", ["latents", "decoder"])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_tuning_does_not_mind_that_gradients_are_off(
    tiny_editor: Editor, photo: Path, way: Reconstruction, around: Callable[[], Any]
) -> None:
    def tuned() -> np.ndarray:
        editor = Editor(tiny_editor.model)  # that remembers no latent
        made = editor.edit(
            photo, mask("in the middle"), "red", candidates=1, seed=0, steps=2, reconstruct=way, tune_steps=2
        )
        return made.best.photograph.pixels

    with around():
        found = tuned()
    np.testing.assert_array_equal(found, tuned())


def test_the_bundled_models_decoder_learns_a_background() -> None:
    """A real decoder, a few steps: it comes nearer to the photograph by a decibel at least."""
    editor = Editor.from_pretrained("mini", ranker="none", device="cpu")
    photo, white = data.astronaut()[:128, 160:288], np.zeros((128, 128), bool)
    white[40:88, 40:88] = True
    asked = EditOptions(candidates=1, seed=0, steps=2, reconstruct="none", tune_lr=1e-3, tune_steps=10)
    edit = editor.edit(photo, white, "a lemon", options=asked)
    tuned = editor.finish(
        photo, white, "a lemon", edit.latents, options=dataclasses.replace(asked, reconstruct="decoder")
    )
    before, after = (result.best.fidelity.psnr for result in (edit, tuned))
    assert before is not None
    assert after is not None
    assert after > before + 1
