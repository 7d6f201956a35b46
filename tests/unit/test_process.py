"""Seeing an edit happen: the same edit, and guesses that are what they are said to be."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from bld import Cancelled, EditOptions, Editor
from bld.apps import contact, visualize
from bld.editor import Preview
from bld.models.base import CLEAN, Level, Step
from bld.process import Frame, process
from bld.task import check
from tests.tiny import TINY_SIZE, GaussianModel

PHOTO = np.random.default_rng(0).integers(0, 256, (TINY_SIZE, TINY_SIZE, 3)).astype(np.uint8)
MASK = np.zeros((TINY_SIZE, TINY_SIZE), bool)
MASK[16:48, 8:40] = True


def frames(family: Any = "ddim", count: int = 5, **options: Any) -> list[Frame]:
    model = GaussianModel(family)
    task = check(model, PHOTO, MASK, "a red wall", EditOptions(candidates=1, seed=4, **options))
    return list(process(model, task, frames=count))


@pytest.mark.parametrize("family", ["ddim", "flow"])
def test_the_last_frame_is_the_edit(family: Any) -> None:
    shown = frames(family, steps=10)
    edit = Editor(GaussianModel(family)).edit(
        PHOTO, MASK, "a red wall", candidates=1, seed=4, steps=10, reconstruct="none"
    )
    np.testing.assert_array_equal(np.rint(shown[-1].picture * 255), edit.best.photograph.pixels)
    assert [f.step for f in shown] == [2, 4, 6, 8, 10]
    assert shown[-1].level == CLEAN
    assert torch.equal(shown[-1].z_0, edit.latents.z_0)


@pytest.mark.parametrize("family", ["ddim", "flow"])
def test_every_guess_is_clean_and_leaves_the_photograph(family: Any) -> None:
    """The exact denoiser knows the colour from the first step on: no noise is left in its guesses."""
    for frame in frames(family, steps=10):
        inside = frame.picture[MASK]
        np.testing.assert_allclose(inside.mean(0), (1, 0, 0), atol=0.06)  # its spread, as in the edit
        assert inside.std(0).max() < 0.06
        cells = PHOTO.reshape(8, 8, 8, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1) / 255
        np.testing.assert_allclose(frame.picture[~MASK], cells[~MASK], atol=1e-5)


@pytest.mark.parametrize(
    ("level_in", "level_out"), [((0.0, 1.0), (0.6, 0.8)), ((0.6, 0.8), (1.0, 0.0)), ((0.3, 0.7), (0.8, 0.2))]
)
def test_a_guess_is_what_both_ends_of_a_step_are_noisings_of(level_in: Any, level_out: Any) -> None:
    z_0, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    step = Step(Level(*level_in), Level(*level_out), lambda z: z)
    guess = step.guess(step.level_in.noise(z_0, eps), step.level_out.noise(z_0, eps))
    torch.testing.assert_close(guess, z_0, atol=1e-5, rtol=1e-5)


def test_the_mask_in_force_is_shown() -> None:
    line = np.zeros_like(MASK)
    line[30, 8:56] = True
    model = GaussianModel()
    task = check(model, PHOTO, line, "red", EditOptions(candidates=1, seed=0, steps=4))
    assert [float(f.m_latent.sum()) for f in process(model, task, frames=4)] == [24.0, 24.0, 6.0, 6.0]


def test_strip_animation_and_film(tmp_path: Path) -> None:
    shown = frames(steps=10)
    strip = visualize.strip(shown)
    tile = visualize.LARGEST + contact.GAP
    assert strip.size == (contact.GAP + 5 * tile, contact.GAP + 2 * (tile + contact.LINE))
    visualize.write_gif(shown, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert durations == [200, 200, 200, 200, 1500]
    visualize.write_mp4(shown, tmp_path / "a.mp4")
    film = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    pictures = []
    while (frame := film.read())[0]:
        pictures.append(frame[1])
    film.release()
    assert len(pictures) == 5 + 7
    # Blue comes first in OpenCV. Video is lossy: within 40 levels.
    row, column = contact.GAP + visualize.LARGEST // 2, contact.GAP + visualize.LARGEST * 3 // 8
    np.testing.assert_allclose(pictures[-1][row, column], (0, 0, 255), atol=40, err_msg="red, in the mask")


def test_the_latents_picture_has_every_channel_and_the_mask() -> None:
    sheet = visualize.latents(frames(steps=4, count=1)[0])
    assert sheet.width == contact.GAP + 4 * (visualize.LARGEST + contact.GAP)  # three channels and the mask


def test_previews_come_after_each_step_and_end_with_the_edit() -> None:
    """Of every candidate in work, at the photograph's size, with the background untouched."""
    seen: list[Preview] = []
    edit = Editor(GaussianModel()).edit(
        PHOTO, MASK, "a red wall", candidates=3, batch_size=2, seed=4, steps=5, preview=seen.append
    )
    assert [(p.step, p.steps, p.seeds) for p in seen] == [
        (step, 10, (4, 5) if step <= 5 else (6,)) for step in range(1, 11)
    ]
    early = seen[0].photograph(1)
    np.testing.assert_array_equal(early.pixels[~MASK], PHOTO[~MASK])
    made = {c.seed: c.photograph.pixels for c in edit.candidates}
    for preview in (seen[4], seen[9]):
        for place, seed in enumerate(preview.seeds):
            np.testing.assert_array_equal(preview.photograph(place).pixels, made[seed])


def test_what_a_preview_raises_ends_the_edit_within_that_step() -> None:
    seen = []

    def stop(preview: Preview) -> None:
        seen.append(preview.step)
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        Editor(GaussianModel()).edit(PHOTO, MASK, "red", steps=5, seed=0, preview=stop)
    assert seen == [1]
