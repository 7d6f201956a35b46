"""The measures of what an edit did to the photograph around it."""

from typing import Any

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from bld.fidelity import fidelity
from bld.images import Photograph
from bld.masks import Box


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_background_error_is_in_eight_bit_levels(dtype: Any) -> None:
    scale = np.iinfo(dtype).max // 255
    photograph = Photograph(np.full((4, 5, 3), 100 * scale, dtype))
    changed = photograph.pixels.copy()
    mask = np.zeros((4, 5), np.float32)
    mask[0, 0] = 1
    changed[0, 0] = 0  # inside: does not count
    changed[1, 1, 0] += 10 * scale
    changed[1, 2, 0] -= 20 * scale
    found = fidelity(photograph, Photograph(changed), mask)
    assert found.max_error == pytest.approx(20)
    mean = (10**2 + 20**2) / (19 * 3)
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / mean))


@pytest.mark.parametrize("inside", [0, 1], ids=["nothing differs", "no outside"])
def test_fidelity_of_nothing(inside: int) -> None:
    photograph = Photograph(np.zeros((3, 3, 3), np.uint8))
    result = Photograph(np.full((3, 3, 3), 9 * inside, np.uint8))
    assert fidelity(photograph, result, np.full((3, 3), inside, np.float32)) == (0.0, None, 1.0, None)


def test_ssim_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (40, 50)).astype(np.uint8)
    after = np.clip(before + rng.normal(0, 20, before.shape), 0, 255).astype(np.uint8)
    grey = [Photograph(np.repeat(p[..., None], 3, 2)) for p in (before, after)]
    found = fidelity(grey[0], grey[1], np.zeros((40, 50), np.float32))
    _, every = structural_similarity(
        before,
        after,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    # Away from the border, which the two continue in different ways.
    assert found.ssim == pytest.approx(float(every[5:-5, 5:-5].mean()), abs=0.01)


def test_ssim_does_not_look_inside_the_mask() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    mask = np.zeros((40, 50), np.float32)
    mask[10:30, 10:30] = 1
    changed = pixels.copy()
    changed[0, 0] ^= 255
    little = fidelity(Photograph(pixels), Photograph(changed), mask)
    changed[mask > 0] ^= 255
    assert fidelity(Photograph(pixels), Photograph(changed), mask).ssim == little.ssim < 1


def test_the_seam_is_what_the_edge_shows_beyond_the_photograph() -> None:
    ramp = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2)
    mask = np.zeros((20, 20), np.float32)
    mask[:, 10:] = 1
    assert fidelity(Photograph(ramp), Photograph(ramp), mask).seam == pytest.approx(1)
    lifted = ramp.copy()
    lifted[:, 10:] += 20  # steps of 10 everywhere, of 30 at the edge
    assert fidelity(Photograph(ramp), Photograph(lifted), mask).seam == pytest.approx(3)
    flat = np.full((20, 20, 3), 100, np.uint8)
    stepped = flat + (10 * mask[..., None]).astype(np.uint8)
    assert fidelity(Photograph(flat), Photograph(stepped), mask).seam == pytest.approx(10), "a level at least"


@pytest.mark.parametrize("box", [Box(30, 40, 25, 20), Box(0, 0, 25, 20), Box(75, 75, 25, 25)])
def test_a_box_saves_work_and_changes_nothing(box: Box) -> None:
    """Numbers of the whole photograph, from a look at the part of it that may differ."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (100, 100, 3)).astype(np.uint8)
    after = before.copy()
    after[box.slices] = rng.integers(0, 256, (box.height, box.width, 3))
    mask = np.zeros((100, 100), np.float32)
    mask[box.top + 5 : box.top + 15, box.left + 5 : box.left + 15] = 1
    whole = fidelity(Photograph(before), Photograph(after), mask)
    assert fidelity(Photograph(before), Photograph(after), mask, box) == pytest.approx(whole, rel=1e-9)
