"""Reading masks, resizing, tensors."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bld import images
from bld.errors import BldError, InvalidInput
from bld.images import (
    from_srgb,
    from_tensor,
    read_mask,
    resize_mask,
    resize_pixels,
    to_srgb,
    to_tensor,
)
from bld.png import encode_png
from tests.pictures import LIMIT, RGB, encoded

# --- masks ---


def two_layers(luminance: list[int], alpha: list[int]) -> np.ndarray:
    grey = np.array([luminance], np.uint8)
    return np.dstack([grey, grey, grey, np.array([alpha], np.uint8)])


@pytest.mark.parametrize(
    ("source", "values", "read_from"),
    [
        pytest.param(np.array([[False, True]]), [0, 1], "luminance", id="bool"),
        pytest.param(np.array([[0, 0.25, 1]]), [0, 0.25, 1], "luminance", id="float"),
        pytest.param(np.array([[0, 51, 255]], np.uint8), [0, 0.2, 1], "luminance", id="uint8"),
        pytest.param(np.array([[[0], [255]]], np.uint8), [0, 1], "luminance", id="h-w-1"),
        pytest.param(
            encoded(np.array([[0, 13107, 65535]], np.uint16)), [0, 0.2, 1], "luminance",
            id="16-bit-grey",
        ),
        pytest.param(
            encode_png(np.array([[[0] * 3, [13107] * 3, [65535] * 3]], np.uint16)), [0, 0.2, 1],
            "luminance", id="16-bit-colour",
        ),
        pytest.param(encoded(np.array([[False, True]])), [0, 1], "luminance", id="1-bit"),
        pytest.param(
            Image.fromarray(np.array([[0.5, 1]], np.float32)), [0.5, 1], "luminance",
            id="pil-float",
        ),
        pytest.param(
            np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), [0.299, 0.587, 0.114],
            "luminance", id="colour",
        ),
        pytest.param(
            two_layers([0, 255, 0], [255] * 3), [0, 1, 0], "luminance", id="opaque-two-levels"
        ),
        pytest.param(
            two_layers([0, 102, 255], [255] * 3), [0, 0.4, 1], "luminance", id="opaque-soft"
        ),
        pytest.param(two_layers([0, 0, 0], [255] * 3), [0, 0, 0], "luminance", id="opaque-black"),
        pytest.param(
            two_layers([0, 255, 0], [0, 255, 51]), [0, 1, 0], "luminance", id="two-levels"
        ),
        pytest.param(
            two_layers([255] * 3, [0, 51, 255]), [0, 0.2, 1], "alpha", id="white-brush-on-nothing"
        ),
        pytest.param(
            two_layers([0] * 3, [0, 255, 0]), [0, 1, 0], "alpha", id="black-brush-on-nothing"
        ),
        pytest.param(
            two_layers([0, 76, 76], [0, 255, 51]), [0, 1, 0.2], "alpha", id="dark-brush-on-nothing"
        ),
        pytest.param(
            two_layers([9, 120, 200], [255, 0, 255]), [1, 0, 1], "alpha", id="photograph-with-hole"
        ),
        pytest.param(two_layers([255] * 3, [0] * 3), [0] * 3, "alpha", id="nothing-painted"),
    ],
)  # fmt: skip
def test_read_mask(source: Any, values: list[float], read_from: str) -> None:
    mask = read_mask(source, max_pixels=LIMIT)
    assert mask.values.dtype == np.float32
    np.testing.assert_allclose(mask.values, [values], atol=1e-7)
    assert mask.note.startswith(f"mask read from {read_from}")


def test_luminance_of_grey_is_grey_to_the_last_bit() -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    grey = read_mask(levels, max_pixels=LIMIT).values
    colour = read_mask(np.dstack([levels] * 3), max_pixels=LIMIT).values
    np.testing.assert_array_equal(grey, colour)
    assert colour.max() == 1


def test_the_mode_overrules() -> None:
    layers = two_layers([0, 255, 0], [255, 0, 51])
    np.testing.assert_allclose(read_mask(layers, mode="alpha", max_pixels=LIMIT).values, [[1, 0, 0.2]])
    layers = two_layers([0, 51, 102], [255, 0, 51])
    np.testing.assert_allclose(read_mask(layers, mode="luminance", max_pixels=LIMIT).values, [[0, 0.2, 0.4]])
    for mode in ("alpha", "transparency"):
        with pytest.raises(InvalidInput, match=r"no alpha channel.*--mask-mode"):
            read_mask(RGB, mode=mode, max_pixels=LIMIT)  # type: ignore[arg-type]


def test_transparency_is_what_is_not_opaque_at_all() -> None:
    """As the OpenAI images API has it: half transparent is kept."""
    layers = two_layers([255, 0, 9, 200], [0, 1, 128, 255])
    found = read_mask(layers, mode="transparency", max_pixels=LIMIT)
    np.testing.assert_array_equal(found.values, [[1, 0, 0, 0]])
    assert "transparency" in found.note


@pytest.mark.parametrize("values", [[0.0, 1.5], [-0.1, 1.0], [0.0, np.nan]])
def test_floats_beyond_0_to_1_are_refused(values: list[float]) -> None:
    with pytest.raises(InvalidInput, match=r"expected \[0, 1\]"):
        read_mask(np.array([values]), max_pixels=LIMIT)


def test_float_alpha_is_checked_too() -> None:
    with pytest.raises(InvalidInput, match=r"expected \[0, 1\]"):
        read_mask(np.array([[[0, 0, 0, 7.0]]]), max_pixels=LIMIT)


def test_masks_of_other_types_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"int64, expected bool, uint8"):
        read_mask(np.array([[0, 1]]), max_pixels=LIMIT)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_masks_of_0_and_1_are_refused_with_the_reason(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    with pytest.raises(InvalidInput, match=f"largest value is 1 where white is {top}"):
        read_mask(encoded(np.array([[0, 1]], dtype)), max_pixels=LIMIT)


def test_what_reading_a_mask_converted_is_in_its_note() -> None:
    assert "palette converted to RGB" in read_mask(encoded(Image.new("P", (2, 1))), max_pixels=LIMIT).note


# --- resizing, tensors ---


def test_resize_mask_invents_no_values() -> None:
    mask = np.array([[0, 1], [1, 0]], np.float32)
    np.testing.assert_array_equal(resize_mask(mask, (4, 6)), np.kron(mask, np.ones((2, 3))))
    assert set(np.unique(resize_mask(mask, (5, 3)))) == {0, 1}


def test_resize_pixels_averages_when_shrinking() -> None:
    pixels = np.random.default_rng(3).random((12, 20, 3), np.float32)
    expected = pixels.reshape(4, 3, 5, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_pixels(pixels, (4, 5)), expected, atol=1e-6)
    # By area at any ratio: a fine pattern becomes grey, not a coarse pattern.
    stripes = np.tile(np.array([0, 1], np.float32), (100, 50))
    assert np.ptp(resize_pixels(stripes, (37, 7))) < 0.15


@pytest.mark.parametrize("size", [(5, 7), (11, 18), (24, 40), (24, 9), (6, 40)])
def test_resize_pixels_shifts_nothing_and_stays_in_range(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(4).integers(0, 2, (12, 20, 3)).astype(np.float32)
    resized = resize_pixels(pixels, size)
    assert resized.shape == (*size, 3)
    assert resized.dtype == np.float32
    assert resized.min() >= 0
    assert resized.max() <= 1
    mirrored = resize_pixels(np.ascontiguousarray(pixels[::-1, ::-1]), size)
    np.testing.assert_allclose(mirrored[::-1, ::-1], resized, atol=1e-5)
    flat = resize_pixels(np.full((12, 20, 3), 0.3, np.float32), size)
    np.testing.assert_allclose(flat, 0.3, atol=1e-6)


def test_resize_pixels_to_the_same_size_is_an_exact_copy() -> None:
    pixels = np.random.default_rng(5).random((6, 5, 3), np.float32)
    resized = resize_pixels(pixels, (6, 5))
    np.testing.assert_array_equal(resized, pixels)
    assert not np.shares_memory(resized, pixels)


def test_tensors_there_and_back() -> None:
    rgb = to_srgb(RGB, None)
    batch = to_tensor(rgb)
    assert batch.shape == (1, 3, 5, 7)
    assert batch.dtype == torch.float32
    assert batch[0, 2, 4, 1].item() == pytest.approx(rgb[4, 1, 2] * 2 - 1, abs=1e-6)
    np.testing.assert_array_equal(from_srgb(from_tensor(batch)[0], None, np.uint8), RGB)


def test_from_tensor_clamps_a_batch_and_refuses_what_is_no_number() -> None:
    batch = torch.tensor([-3.0, -1.0, 0.0, 3.0], dtype=torch.bfloat16).view(4, 1, 1, 1)
    pixels = from_tensor(batch.expand(4, 3, 2, 5).requires_grad_())
    assert pixels.shape == (4, 2, 5, 3)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[:, 0, 0, 0], [0, 0, 0.5, 1])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(BldError, match=r"not numbers: use dtype float32.*--tune-lr"):
            from_tensor(torch.full((1, 3, 2, 2), bad, dtype=torch.bfloat16))


# --- the module ---


def test_importing_images_is_light() -> None:
    code = f"import {images.__name__}, sys; print('torch' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
