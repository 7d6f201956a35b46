"""The variants of a request: one thing changed at a time, and everything else as it was."""

import numpy as np
import pytest

from bld import EditOptions, InvalidInput
from bld.evaluation.sensitivity import Variant, prepare, variants
from bld.images import Photograph
from tests.tiny import GaussianModel

SIDE = 100
PHOTO = Photograph(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8), icc_profile=None)
MASK = np.zeros((SIDE, SIDE), np.float32)
MASK[30:50, 20:60] = 1


def named(series: list[Variant]) -> dict[str, Variant]:
    return {variant.label: variant for variant in series}


def test_each_variant_changes_one_thing() -> None:
    series = variants(PHOTO, MASK, "red")
    assert (series[0].photograph, series[0].prompt) == (PHOTO, "red")
    for variant in series[1:]:
        changed = [
            variant.prompt != "red",
            bool((variant.mask != MASK).any()),
            variant.photograph is not PHOTO,
        ]
        assert sum(changed) == (2 if "turned" in variant.label else 1), variant.label


def test_masks_grow_and_shrink_by_a_tenth_of_their_longer_side() -> None:
    found = named(variants(PHOTO, MASK, "red"))
    rows, columns = (found["mask grown"].mask.any(axis).nonzero()[0] for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (26, 53, 16, 63)
    rows, columns = (found["mask shrunk"].mask.any(axis).nonzero()[0] for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (34, 45, 24, 55)


def test_a_mask_too_thin_to_shrink_has_no_shrunk_variant() -> None:
    line = np.zeros_like(MASK)
    line[40, 10:90] = 1
    assert "mask shrunk" not in named(variants(PHOTO, line, "red"))


def test_photograph_and_mask_turn_together() -> None:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[MASK > 0] = 255
    turned = named(variants(Photograph(pixels), MASK, "red"))["turned by 5 degrees"]
    bright = turned.photograph.pixels[..., 0] > 127
    assert (bright == (turned.mask > 0)).mean() > 0.99
    left, right = (np.flatnonzero(bright[:, column]).mean() for column in (25, 55))
    assert right < left, "counter-clockwise: the right end rises"


def test_sixteen_bits_and_the_profile_stay() -> None:
    deep = Photograph(PHOTO.pixels.astype(np.uint16) * 257, icc_profile=b"profile")
    for variant in variants(deep, MASK, "red"):
        assert variant.photograph.pixels.dtype == np.uint16
        assert variant.photograph.icc_profile == b"profile"


def test_other_prompts_are_the_users() -> None:
    assert [v.prompt for v in variants(PHOTO, MASK, "red", ["crimson", "a red"])][:3] == [
        "red", "crimson", "a red",
    ]  # fmt: skip


def test_an_inverted_mask_is_inverted_once_and_the_seed_is_the_same_for_all() -> None:
    options = EditOptions(candidates=1, invert_mask=True)
    series, same = prepare(GaussianModel(), PHOTO, MASK, "red", options=options)
    np.testing.assert_array_equal(series[0].mask, 1 - MASK)
    assert not same.invert_mask
    assert same.seed is not None


def test_bad_input_is_refused_before_anything_is_made() -> None:
    with pytest.raises(InvalidInput, match="mask"):
        prepare(GaussianModel(), PHOTO, np.zeros_like(MASK), "red", options=EditOptions())
