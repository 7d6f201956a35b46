"""Masks: polarity, the latent grid, the shrink schedule, crops and feathering, by example."""

import io

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bld.errors import InvalidInput
from bld.masks import (
    Box,
    Crop,
    binarise,
    check_same_size,
    context_box,
    feather_inside,
    invert,
    is_soft,
    is_thin,
    latent_mask,
    mask_box,
    require_edit,
    shrink_schedule,
)


def block(size: tuple[int, int], box: Box) -> np.ndarray:
    """Make a mask that edits one box."""
    mask = np.zeros(size, np.float32)
    mask[box.slices] = 1
    return mask


# --- polarity, threshold, refusals ---


def test_invert_and_binarise() -> None:
    mask = np.array([[0, 0.25, 0.5, 1]], np.float32)
    np.testing.assert_array_equal(invert(mask), [[1, 0.75, 0.5, 0]])
    np.testing.assert_array_equal(binarise(mask), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(binarise(mask, 0.25), [[0, 1, 1, 1]])
    assert invert(mask).dtype == binarise(mask).dtype == np.float32


@pytest.mark.parametrize("level", [0, 0.004, 0.49])
def test_a_mask_without_an_edited_pixel_is_refused(level: float) -> None:
    with pytest.raises(InvalidInput, match=rf"empty.*{level:g}.*--invert-mask"):
        require_edit(np.full((4, 4), level, np.float32))
    require_edit(np.full((4, 4), 0.5, np.float32))


def test_sizes_that_differ_are_refused_as_width_x_height() -> None:
    check_same_size((3, 4), (3, 4))
    with pytest.raises(InvalidInput, match=r"mask is 640x480.*image 4000x3000.*--resize-mask"):
        check_same_size((3000, 4000), (480, 640))
    with pytest.raises(InvalidInput):
        check_same_size((3, 4), (4, 3))


# --- the latent grid ---


@pytest.mark.parametrize(
    ("lines", "grid", "expected"),
    [
        pytest.param([0], 4, [1, 0, 0, 0], id="first-row"),
        pytest.param([15], 4, [0, 0, 0, 1], id="last-row"),
        pytest.param([3, 4], 4, [1, 1, 0, 0], id="across-a-boundary"),
        pytest.param([5], 3, [1, 1, 0], id="boundary-inside-a-pixel"),
        pytest.param([5], 16, [0] * 5 + [1] + [0] * 10, id="one-to-one"),
        pytest.param([8], 32, [0] * 16 + [1, 1] + [0] * 14, id="finer-than-the-mask"),
    ],
)
def test_latent_mask_rows(lines: list[int], grid: int, expected: list[int]) -> None:
    mask = np.zeros((16, 16), np.float32)
    mask[lines] = 1
    np.testing.assert_array_equal(latent_mask(mask, (grid, 2))[:, 0], expected)
    np.testing.assert_array_equal(latent_mask(mask.T, (2, grid))[0], expected)


def test_latent_mask_takes_one_half_as_edited() -> None:
    mask = np.full((8, 8), 0.49, np.float32)
    mask[0, 0] = 0.5
    np.testing.assert_array_equal(latent_mask(mask, (2, 2)), [[1, 0], [0, 0]])


# --- shrinking ---


def test_the_papers_schedule_on_the_papers_latent() -> None:
    schedule = shrink_schedule(block((32, 32), Box(10, 20, 1, 1)), 8)
    boxes = [mask_box(m) for m in schedule]
    assert [(b.height, b.width) for b in boxes] == [(s, s) for s in (7, 7, 5, 5, 3, 3, 1, 1)]
    assert [b.top for b in boxes] == [7, 7, 8, 8, 9, 9, 10, 10]
    assert all(m.sum() == b.height * b.width for m, b in zip(schedule, boxes, strict=True))


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((8, 8), [3, 3, 1, 1]),
        ((16, 16), [5, 3, 3, 1]),
        ((16, 48), [5, 3, 3, 1]),
        ((64, 64), [13, 9, 5, 1]),
        ((128, 128), [25, 17, 9, 1]),
    ],
)
def test_kernels_scale_with_the_shorter_side(size: tuple[int, int], sides: list[int]) -> None:
    mask = block(size, Box(size[0] // 2, size[1] // 2, 1, 1))
    assert [mask_box(m).width for m in shrink_schedule(mask, 4)] == sides


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [(1, [0, 0, 0, 1]), (3, [0, 1, 1, 1]), (6, [1, 1, 2, 2]), (50, [12, 12, 13, 13])],
)
def test_a_remainder_of_the_steps_goes_to_the_last_parts(steps: int, lengths: list[int]) -> None:
    areas = [m.sum() for m in shrink_schedule(block((32, 32), Box(16, 16, 1, 1)), steps)]
    assert [areas.count(area) for area in (49, 25, 9, 1)] == lengths


def test_a_mask_at_the_border_stays_inside() -> None:
    widest = shrink_schedule(block((32, 32), Box(0, 0, 1, 1)), 4)[0]
    assert mask_box(widest) == Box(0, 0, 4, 4)


@pytest.mark.parametrize(
    ("size", "box", "thin"),
    [
        pytest.param((32, 32), Box(5, 5, 2, 20), True, id="line"),
        pytest.param((32, 32), Box(5, 5, 3, 3), False, id="three-cells"),
        pytest.param((32, 32), Box(0, 0, 2, 32), True, id="line-at-the-border"),
        pytest.param((16, 16), Box(5, 5, 1, 9), True, id="half-side-line"),
        pytest.param((16, 16), Box(5, 5, 2, 9), False, id="half-side-bar"),
        pytest.param((64, 64), Box(5, 5, 4, 40), True, id="double-side-bar"),
        pytest.param((64, 64), Box(5, 5, 5, 40), False, id="double-side-block"),
        pytest.param((8, 8), Box(1, 1, 1, 6), True, id="at-least-one-cell"),
    ],
)
def test_is_thin(size: tuple[int, int], box: Box, thin: bool) -> None:
    assert is_thin(block(size, box)) is thin


def test_many_lines_are_thin_whatever_their_area() -> None:
    mask = np.zeros((32, 32), np.float32)
    mask[::3] = 1
    assert is_thin(mask)


# --- crops ---


def test_mask_box() -> None:
    assert mask_box(block((9, 8), Box(2, 3, 4, 5))) == Box(2, 3, 4, 5)
    with pytest.raises(InvalidInput, match="empty"):
        mask_box(np.zeros((4, 4), np.float32))


@pytest.mark.parametrize(
    ("image", "box", "native", "multiple", "crop"),
    [
        pytest.param(
            (512, 512), Box(0, 0, 9, 9), 512, 8, Crop(Box(0, 0, 512, 512), (512, 512)), id="native"
        ),
        pytest.param(
            (1000, 900), Box(400, 400, 100, 200), 512, 8,
            Crop(Box(330, 380, 240, 240), (512, 512)), id="context-1.2",
        ),
        pytest.param(
            (1000, 900), Box(400, 400, 96, 96), 128, 8,
            Crop(Box(384, 384, 128, 128), (128, 128)), id="at-least-32-at-the-model",
        ),
        pytest.param(
            (1000, 900), Box(0, 800, 100, 100), 512, 8,
            Crop(Box(0, 780, 120, 120), (512, 512)), id="moved-inside",
        ),
        pytest.param(
            (300, 1000), Box(0, 350, 300, 300), 512, 8,
            Crop(Box(0, 319, 300, 361), (512, 616)), id="cut-in-height",
        ),
        pytest.param(
            (1000, 300), Box(350, 0, 300, 300), 512, 8,
            Crop(Box(319, 0, 361, 300), (616, 512)), id="cut-in-width",
        ),
        pytest.param(
            (150, 200), Box(0, 0, 150, 200), 512, 8,
            Crop(Box(0, 0, 150, 200), (512, 680)), id="whole",
        ),
        pytest.param(
            (100, 100), Box(10, 10, 90, 90), 512, 8,
            Crop(Box(0, 0, 100, 100), (512, 512)), id="small-and-whole",
        ),
        pytest.param(
            (300, 500), Box(0, 0, 300, 400), 128, 32,
            Crop(Box(0, 0, 300, 450), (128, 192)), id="proportions-before-context",
        ),
        pytest.param(
            (100, 1000), Box(0, 0, 100, 1000), 128, 8,
            Crop(Box(0, 0, 100, 1000), (48, 512)), id="panorama",
        ),
    ],
)  # fmt: skip
def test_context_box(image: tuple[int, int], box: Box, native: int, multiple: int, crop: Crop) -> None:
    assert crop_around(box, image, native, multiple) == crop


def crop_around(
    box: Box, image: tuple[int, int], native: int, multiple: int = 8, least: int = 32, *, whole: bool = True
) -> Crop:
    return context_box(
        box,
        image,
        native=native,
        multiple=multiple,
        context=1.2,
        min_context=least,
        whole=whole,
        max_aspect=4,
    )


def test_a_model_that_does_not_work_on_the_whole_gets_a_crop_of_its_own_size_too() -> None:
    chosen = crop_around(Box(100, 120, 50, 40), (256, 256), 256, whole=False)
    assert chosen == Crop(Box(95, 110, 60, 60), (256, 256))


def test_a_context_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(InvalidInput, match="less than the model's 128"):
        crop_around(Box(0, 0, 9, 9), (500, 500), 128, least=128)


# --- feathering ---


def smooth(step: float) -> float:
    return step * step * (3 - 2 * step)


def test_feather_of_a_block() -> None:
    soft = feather_inside(block((30, 30), Box(5, 5, 20, 20)), 3)
    ramp = [0, smooth(1 / 4), smooth(2 / 4), smooth(3 / 4), 1, 1]
    np.testing.assert_allclose(soft[15, 4:10], ramp, atol=1e-6)
    np.testing.assert_allclose(soft[15], soft[15, ::-1], atol=1e-6)


def test_feather_of_thin_parts_beside_a_thick_one() -> None:
    mask = block((40, 40), Box(0, 0, 20, 20))
    mask[25:28, 5:35] = 1  # three pixels thick: two deep
    mask[35, 5:35] = 1  # one pixel thick
    soft = feather_inside(mask, 8)
    np.testing.assert_allclose(soft[25:28, 20], [0.5, 1, 0.5])
    assert (soft[35, 5:35] == 1).all()
    assert soft[19, 10] == pytest.approx(smooth(1 / 9))


def test_the_photographs_border_is_no_edge() -> None:
    soft = feather_inside(block((20, 20), Box(0, 0, 20, 10)), 4)
    assert (soft[:, 0] == 1).all()
    assert (soft[:, 9] < 0.2).all()
    assert (feather_inside(np.ones((5, 5), np.float32), 4) == 1).all()


def test_feather_looks_at_the_masks_box_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a photograph of 24 megapixels the rest takes a second, and a preview wants it at every step."""
    sizes, transform = [], cv2.distanceTransform

    def measured(bits: np.ndarray, *kind: int) -> np.ndarray:
        sizes.append(bits.shape)
        return transform(bits, *kind)

    monkeypatch.setattr("bld.masks.cv2.distanceTransform", measured)
    feather_inside(block((400, 600), Box(0, 50, 20, 30)), 4)
    assert sizes == [(21, 32)]


def test_feather_gives_a_new_array() -> None:
    mask = block((9, 9), Box(2, 2, 5, 5))
    before = mask.copy()
    feather_inside(mask, 0)[:] = 7
    feather_inside(mask, 2)[:] = 7
    np.testing.assert_array_equal(mask, before)


# --- soft masks ---


def disc(side: int = 64, radius: float = 20) -> npt.NDArray[np.float32]:
    """How far inside a disc each pixel lies, px: positive within."""
    y, x = np.mgrid[0:side, 0:side] + 0.5 - side / 2
    return np.asarray(radius - np.hypot(y, x), np.float32)


def test_antialiased_and_jpeg_masks_are_hard_and_feathered_ones_soft() -> None:
    antialiased = np.clip(disc() + 0.5, 0, 1)
    hard = Image.fromarray((np.where(disc() > 0, 255, 0)).astype(np.uint8))
    content = io.BytesIO()
    hard.save(content, "JPEG", quality=60)
    jpeg = np.asarray(Image.open(content), np.float32) / 255
    assert ((jpeg > 0.02) & (jpeg < 0.98)).sum() > 100, "this JPEG has no noise to be fooled by"
    for mask in (antialiased, jpeg, np.zeros((8, 8), np.float32), np.ones((8, 8), np.float32)):
        assert not is_soft(mask.astype(np.float32))
    assert is_soft(np.clip(disc() / 16 + 0.5, 0, 1))
    gradient = np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[None], 64, 0)
    assert is_soft(gradient)
