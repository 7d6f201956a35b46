"""What holds for every mask, not only for the ones somebody thought of."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from bld.masks import (
    Box,
    binarise,
    context_box,
    feather_inside,
    invert,
    is_thin,
    latent_mask,
    mask_box,
    random_rectangle,
    shrink_schedule,
    soft_schedule,
)

FloatArray = npt.NDArray[np.float32]


@st.composite
def masks(draw: st.DrawFn, largest: int = 48) -> FloatArray:
    """Masks of 0 and 1 with at least one edited pixel: boxes, single pixels and holes."""
    height, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    mask = np.zeros((height, width), np.float32)
    for value in draw(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=5)):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
        mask[top:bottom, left:right] = value
    mask[draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))] = 1
    return mask


@given(masks(), st.floats(0, 1, width=32))
def test_inverting_twice_gives_the_mask(mask: FloatArray, softness: float) -> None:
    soft = mask * np.float32(softness)
    np.testing.assert_allclose(invert(invert(soft)), soft, atol=1e-7)
    np.testing.assert_array_equal(binarise(invert(mask)), 1 - binarise(mask))


# --- the latent grid ---


@given(masks(), st.integers(1, 20), st.integers(1, 20))
def test_a_latent_cell_is_edited_exactly_if_a_pixel_that_touches_it_is(
    mask: FloatArray, rows: int, columns: int
) -> None:
    cells = latent_mask(mask, (rows, columns))
    height, width = mask.shape
    expected = np.zeros((rows, columns), np.float32)
    for y, x in np.argwhere(mask):
        for row in range(rows):
            for column in range(columns):
                # Pixel y is [y, y + 1), cell row is [row, row + 1) * height / rows: they overlap.
                if (
                    y * rows < (row + 1) * height
                    and row * height < (y + 1) * rows
                    and x * columns < (column + 1) * width
                    and column * width < (x + 1) * columns
                ):
                    expected[row, column] = 1
    np.testing.assert_array_equal(cells, expected)
    assert cells.dtype == np.float32


@given(st.integers(0, 61), st.sampled_from([8, 16, 32]), st.sampled_from([64, 100]), st.booleans())
def test_a_line_of_three_pixels_survives_at_every_offset(
    offset: int, grid: int, side: int, upright: bool
) -> None:
    mask = np.zeros((side, side), np.float32)
    mask[offset : offset + 3, 10:50] = 1
    cells = latent_mask(mask.T if upright else mask, (grid, grid))
    cells = cells.T if upright else cells
    assert cells[:, grid * 10 // side : grid * 49 // side + 1].any(axis=0).all()
    assert cells.sum(axis=0).max() <= np.ceil(3 * grid / side) + 1


# --- shrinking ---


@given(masks(), st.integers(0, 60))
def test_the_schedule_is_nested_and_ends_at_the_mask(mask: FloatArray, steps: int) -> None:
    schedule = shrink_schedule(mask, steps)
    assert len(schedule) == steps
    for wider, narrower in pairwise(schedule):
        assert (wider >= narrower).all()
    if steps:
        np.testing.assert_array_equal(schedule[-1], mask)


@given(st.integers(0, 200))
def test_the_schedule_has_equal_quarters(steps: int) -> None:
    mask = np.zeros((32, 32), np.float32)
    mask[16, 16] = 1
    areas = [int(m.sum()) for m in shrink_schedule(mask, steps)]
    lengths = [areas.count(area) for area in (49, 25, 9, 1)]
    assert sum(lengths) == steps
    assert areas == sorted(areas, reverse=True)
    assert max(lengths) - min(lengths) <= 1
    assert lengths[-1] == max(lengths)


@given(masks(largest=40), st.integers(8, 64))
def test_thin_is_what_no_square_above_the_limit_fits_into(mask: FloatArray, side: int) -> None:
    scale = min(mask.shape) / side
    limit = max(1, int(np.floor(2 * scale + 0.5)))
    square = np.ones((limit + 1, limit + 1))
    eroded = ndimage.binary_erosion(np.pad(mask, limit + 1) > 0, square)
    assert is_thin(mask, side) == (not eroded.any())


# --- the crop ---


@st.composite
def boxes_in_images(draw: st.DrawFn) -> tuple[Box, tuple[int, int]]:
    height, width = draw(st.integers(1, 700)), draw(st.integers(1, 700))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    size = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    return Box(top, left, *size), (height, width)


@given(
    boxes_in_images(),
    st.sampled_from([(64, 8), (128, 8), (128, 32), (512, 64)]),
    st.floats(1, 2.5),
    st.integers(0, 32),
    st.booleans(),
    st.sampled_from([1, 3, 4]),
)
def test_the_crop_contains_the_mask_and_lies_inside(
    placed: tuple[Box, tuple[int, int]],
    model: tuple[int, int],
    context: float,
    least: int,
    whole: bool,
    max_aspect: int,
) -> None:
    box, (height, width) = placed
    native, multiple = model
    crop, size = context_box(
        box,
        (height, width),
        native=native,
        multiple=multiple,
        context=context,
        min_context=least,
        whole=whole,
        max_aspect=max_aspect,
    )
    assert all(type(number) is int for number in (*crop, *size))
    assert 0 <= crop.top <= box.top
    assert box.bottom <= crop.bottom <= height
    assert 0 <= crop.left <= box.left
    assert box.right <= crop.right <= width
    assert size[0] % multiple == size[1] % multiple == 0
    assert max(size) <= max_aspect * native
    if max(crop.height, crop.width) <= max_aspect * min(crop.height, crop.width):
        assert min(size) == native
    if crop.height == crop.width:
        assert size == (native, native)
    else:
        assert (size[0] >= size[1]) == (crop.height > crop.width) or size[0] == size[1]


@given(boxes_in_images())
def test_where_the_square_fits_it_has_the_context_asked_for(
    placed: tuple[Box, tuple[int, int]],
) -> None:
    box, image_size = placed
    native, least, context = 128, 32, 1.2
    crop, size = context_box(
        box,
        image_size,
        native=native,
        multiple=8,
        context=context,
        min_context=least,
        whole=False,
        max_aspect=4,
    )
    longest = max(box.height, box.width)
    side = max(context * longest, longest * native / (native - least))
    if min(image_size) >= side + 1:
        assert crop.height == crop.width
        assert side - 1e-6 <= crop.height < side + 1
        assert (crop.height - longest) * size[0] / crop.height >= least - 1e-6


@given(masks())
def test_the_mask_box_is_tight(mask: FloatArray) -> None:
    box = mask_box(mask)
    assert mask[box.slices].sum() == mask.sum()
    for edge in (mask[box.top], mask[box.bottom - 1], mask[:, box.left], mask[:, box.right - 1]):
        assert edge.any()


# --- feathering ---


@given(masks(), st.integers(0, 12))
def test_the_feather_is_0_outside_and_reaches_1_in_every_part(mask: FloatArray, radius: int) -> None:
    soft = feather_inside(mask, radius)
    assert soft.dtype == np.float32
    assert (soft[mask == 0] == 0).all()
    assert (soft[mask == 1] > 0).all()
    assert soft.max() <= 1
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    assert (ndimage.maximum(soft, parts, np.arange(1, count + 1)) == 1).all()


@given(masks(), st.integers(0, 12))
def test_the_feather_follows_the_euclidean_distance(mask: FloatArray, radius: int) -> None:
    soft = feather_inside(mask, radius)
    if mask.all():
        np.testing.assert_array_equal(soft, mask)
        return
    distance = ndimage.distance_transform_edt(mask)
    assert (soft[distance >= radius + 1] == 1).all()
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    for part in range(1, count + 1):
        values, depths = soft[parts == part], distance[parts == part]
        order = np.argsort(depths)
        assert (np.diff(values[order]) >= -1e-6).all()


@given(masks(), st.integers(0, 12), st.integers(2, 20), st.integers(0, 3))
def test_the_feather_of_a_part_goes_by_the_part_alone(
    mask: FloatArray, radius: int, gap: int, turns: int
) -> None:
    """So a box around what is edited gives what the whole photograph would, but for OpenCV's last bit."""
    alone = np.pad(mask, ((0, gap), (0, gap)))  # at the photograph's border as it was on two sides
    beside = alone.copy()
    beside[-1, -1] = 1  # the box reaches into the far corner
    alone, beside = np.rot90(alone, turns), np.rot90(beside, turns)
    expected = feather_inside(beside, radius)
    expected[(alone == 0) & (beside == 1)] = 0
    np.testing.assert_allclose(feather_inside(alone, radius), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("radius", [0, 3])
@given(mask=masks(), level=st.floats(0.125, 1, width=32))
def test_a_soft_mask_is_never_raised(radius: int, mask: FloatArray, level: float) -> None:
    soft = mask * np.float32(level)
    result = feather_inside(soft, radius)
    assert (result <= soft).all()
    assert result.max() == soft.max()


# --- soft masks ---


@given(masks(), st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 12))
def test_soft_masks_grow_from_their_white_to_all_that_is_not_black(
    mask: FloatArray, seed: int, steps: int, side: int
) -> None:
    soft = mask * np.random.default_rng(seed).random(mask.shape, np.float32)
    grid = (side, side)
    schedule = soft_schedule(soft, grid, steps)
    assert len(schedule) == steps
    for earlier, later in pairwise(schedule):
        assert (earlier <= later).all()
    first = (soft > 1 - 1 / steps).astype(np.float32)
    np.testing.assert_array_equal(schedule[0], latent_mask(first, grid))
    assert (schedule[0] >= latent_mask((soft >= 1).astype(np.float32), grid)).all()
    np.testing.assert_array_equal(schedule[-1], latent_mask((soft > 0).astype(np.float32), grid))


@given(masks(), st.integers(1, 20))
def test_a_hard_mask_is_its_own_soft_schedule(mask: FloatArray, steps: int) -> None:
    for m in soft_schedule(mask, (6, 6), steps):
        np.testing.assert_array_equal(m, latent_mask(mask, (6, 6)))


@given(st.integers(10, 2000), st.integers(10, 2000), st.integers(0, 99))
def test_rectangles_are_as_the_paper_draws_them(height: int, width: int, seed: int) -> None:
    box = random_rectangle((height, width), np.random.default_rng(seed))
    for side, length in ((height, box.height), (width, box.width)):
        assert side / 5 - 1 <= length <= side / 2 + 1
    assert 0 <= box.top <= box.bottom <= height
    assert 0 <= box.left <= box.right <= width
