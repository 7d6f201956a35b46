"""Colour words: hue and back, what counts as the colour of a cut-out, and how it gets another."""

import colorsys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bld.training.colours import COLOURS, apart, dominant, hsv, nearest, recoloured, rgb

UNIT = st.floats(0, 1, width=32)


def pixel(*values: float) -> torch.Tensor:
    """One pixel as b c h w."""
    return torch.tensor(values).view(1, -1, 1, 1)


def disc(colour: tuple[float, float, float], side: int = 24) -> torch.Tensor:
    """A disc of one colour with a grey core on nothing, premultiplied: 1 4 h w."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    inside = (radius < 0.9).float()
    filled = torch.where(radius < 0.3, torch.full((3, 1, 1), 0.5), torch.tensor(colour).view(3, 1, 1))
    return torch.cat([filled * inside, inside[None]])[None]


@given(UNIT, UNIT, UNIT)
def test_hue_saturation_and_value_are_those_of_the_standard_library(r: float, g: float, b: float) -> None:
    found = [float(channel) for channel in hsv(pixel(r, g, b))]
    hue, saturation, value = colorsys.rgb_to_hsv(r, g, b)
    if max(r, g, b) - min(r, g, b) > 1e-3:  # nearly grey: its hue is a matter of rounding
        assert abs(float(apart(torch.tensor(found[0]), 360 * hue))) < 0.1
        assert found[1] == pytest.approx(saturation, abs=1e-4)
    assert found[2] == pytest.approx(value, abs=1e-6)


@given(UNIT, UNIT, UNIT)
def test_there_and_back_is_the_same_colour(r: float, g: float, b: float) -> None:
    torch.testing.assert_close(rgb(*hsv(pixel(r, g, b))), pixel(r, g, b), atol=1e-4, rtol=0)


@pytest.mark.parametrize("word", COLOURS)
@pytest.mark.parametrize("own", [(0.9, 0.1, 0.15), (0.2, 0.6, 0.9), (0.3, 0.5, 0.1)])
def test_a_recoloured_cutout_has_the_colour_of_the_word(word: str, own: tuple[float, float, float]) -> None:
    before = disc(own)
    hue, share = dominant(before[:, :3], before[:, 3])
    assert float(share) > 0.8
    after = recoloured(before, hue, torch.tensor([list(COLOURS).index(word)]))
    found, share = dominant(after[:, :3], after[:, 3])
    assert nearest(float(found)) == word
    assert float(share) > 0.8
    assert torch.equal(after[:, 3], before[:, 3]), "its outline changed"
    middle = (slice(None), slice(0, 3), 12, 12)
    torch.testing.assert_close(after[middle], before[middle], msg="grey took on colour")
    assert (after[:, :3] <= after[:, 3:] + 1e-6).all(), "premultiplied colours exceed their alpha"


def test_other_hues_keep_their_colour() -> None:
    leaf = disc((0.2, 0.7, 0.2))
    after = recoloured(leaf, torch.tensor([0.0]), torch.tensor([list(COLOURS).index("blue")]))
    torch.testing.assert_close(after, leaf)


def test_a_narrow_peak_is_found_in_its_middle() -> None:
    for degrees in range(0, 360, 15):
        one = rgb(*(torch.full((1, 8, 8), value) for value in (float(degrees), 0.8, 0.8)))
        hue, share = dominant(one, torch.ones(1, 8, 8))
        assert abs(float(apart(hue, float(degrees)))) <= 2.5, "half a bin"
        assert float(share) == 1


def test_grey_and_dark_pixels_have_no_hue() -> None:
    for colour in ((0.5, 0.5, 0.55), (0.1, 0.0, 0.0)):
        assert float(dominant(pixel(*colour), torch.ones(1, 1, 1))[1]) == 0


def test_only_where_it_looks_counts() -> None:
    picture = torch.zeros(1, 3, 4, 4)
    picture[:, 0, :, :2], picture[:, 2, :, 2:] = 1, 1
    left = torch.zeros(1, 4, 4)
    left[:, :, :2] = 1
    for where, word in ((left, "red"), (1 - left, "blue")):
        hue, share = dominant(picture, where)
        assert (nearest(float(hue)), float(share)) == (word, 1)
