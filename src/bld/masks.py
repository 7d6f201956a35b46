"""Masks: which pixels change, which latent cells change, which crop is worked on.

Pure functions on arrays. A mask is h w, float32 in [0, 1], and 1 means edit, everywhere; a pixel
counts as edited from one half upwards. Sizes are (height, width), boxes (top, left, height, width).
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from bld.errors import InvalidInput

FloatArray = npt.NDArray[np.float32]
Size = tuple[int, int]

SHRINK_RADII = (3, 2, 1, 0)  # kernels 7x7, 5x5, 3x3 and the mask itself: section 4.3 of the paper
SHRINK_SIDE = 32  # the latent side that the paper gives them for
THIN_CELLS = 2  # on that side
OUTLINE = 2  # px, how far antialiasing reaches on either side of an edge
SMALLEST, LARGEST = 1 / 5, 1 / 2  # sides of the paper's masks, as shares of the photograph's


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """First row below the box."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First column to the right of the box."""
        return self.left + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box in an array h w ...: `pixels[box.slices]`."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class Crop(NamedTuple):
    """Where an edit works: a box of the photograph, and the size at which the model sees it."""

    box: Box
    size: Size


def random_rectangle(size: Size, rng: np.random.Generator) -> Box:
    """A rectangle anywhere in a picture, its sides uniform in [dim/5, dim/2]: the masks of section 5.1."""
    height, width = (round(side * rng.uniform(SMALLEST, LARGEST)) for side in size)
    top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
    return Box(top, left, max(1, height), max(1, width))


def invert(mask: FloatArray) -> FloatArray:
    """Exchange edit and keep."""
    return np.float32(1) - mask


def binarise(mask: FloatArray, threshold: float = 0.5) -> FloatArray:
    """Make a mask of 0 and 1: 1 from the threshold upwards."""
    return (mask >= threshold).astype(np.float32)


def require_edit(mask: FloatArray) -> None:
    """Raise InvalidInput for a mask that edits no pixel."""
    if not binarise(mask).any():
        raise InvalidInput(
            "the mask is empty: all its pixels say keep (white = 1 = edit, the lightest here is "
            f"{mask.max():.3g}); paint white what shall change, or try --invert-mask"
        )


def check_same_size(image_size: Size, mask_size: Size) -> None:
    """Raise InvalidInput if image and mask are not of one size."""
    if tuple(image_size) != tuple(mask_size):
        (height, width), (mask_height, mask_width) = image_size, mask_size
        raise InvalidInput(
            f"the mask is {mask_width}x{mask_height}, the image {width}x{height}; "
            "give a mask of the image's size, or allow resizing it with --resize-mask"
        )


def latent_mask(mask: FloatArray, grid: Size) -> FloatArray:
    """Bring a mask to the latent grid by coverage: a cell is edited if any of its pixels is.

    Returns float32 of 0 and 1. Where the sizes do not divide, a pixel on a boundary belongs to both
    cells: none is lost, so a line of one pixel still edits.
    """
    rows = _any_in_cells(mask >= 0.5, grid[0])
    return _any_in_cells(rows.T, grid[1]).T.astype(np.float32)


def shrink_schedule(m_latent: FloatArray, steps: int, reference_side: int = SHRINK_SIDE) -> list[FloatArray]:
    """List the latent mask of every step, widest first and the mask itself last (section 4.3).

    The paper dilates by all-ones kernels 7x7, 5x5 and 3x3 on a latent of 32x32, each for one
    quarter of the steps. The kernels' radii scale with the latent's shorter side, rounded half up.
    Every mask contains the next. Quarters differ by at most one step, the last is never shorter.
    """
    scale = min(m_latent.shape) / reference_side
    schedule: list[FloatArray] = []
    for part, radius in enumerate(SHRINK_RADII):
        length = (steps + part) // len(SHRINK_RADII)  # a remainder goes to the last parts
        schedule += [_dilate(m_latent, _round_half_up(radius * scale))] * length
    return schedule


def soft_schedule(mask: FloatArray, grid: Size, steps: int) -> list[FloatArray]:
    """List the latent mask of every step for a mask of greys: each pixel is edited once its time has come.

    White is edited from the first step on, a grey of 0.5 from the middle on, the darkest in the last,
    black never: the later the start, the more of the photograph is left to build on. Every mask contains
    the one before (Levin and Fried 2023, "Differential Diffusion"). mask: h w in [0, 1]. Cells by
    coverage, as in `latent_mask`.
    """
    return [latent_mask((mask > 1 - (i + 1) / steps).astype(np.float32), grid) for i in range(steps)]


def is_soft(mask: FloatArray) -> bool:
    """Tell whether a mask's greys are meant: not just those that smooth its outline, or a JPEG's noise.

    Soft is a mask with greys between 0.1 and 0.9 further than 2 pixels from where it crosses 0.5, as
    many as 5 % of its white.
    """
    edited = (mask >= 0.5).astype(np.uint8)
    if not edited.any():
        return False
    ring = np.ones((2 * OUTLINE + 1, 2 * OUTLINE + 1), np.uint8)
    outline = cv2.dilate(edited, ring) != cv2.erode(edited, ring)
    meant = (mask > 0.1) & (mask < 0.9) & ~outline
    return bool(np.count_nonzero(meant) >= 0.05 * np.count_nonzero(edited))


def is_thin(m_latent: FloatArray, reference_side: int = SHRINK_SIDE) -> bool:
    """Tell whether shrinking helps: the mask is too thin for coarse shapes to form inside it.

    Thin is a mask into which no square larger than 2 cells fits, on a latent of 32x32; the limit
    scales with the latent's shorter side, rounded half up, and is at least 1 cell.
    """
    limit = max(1, _round_half_up(THIN_CELLS * min(m_latent.shape) / reference_side))
    square = limit + 1
    if square > min(m_latent.shape):
        return True
    windows = np.lib.stride_tricks.sliding_window_view(m_latent > 0, (square, square))
    return not bool(windows.all(axis=(2, 3)).any())


def mask_box(mask: FloatArray) -> Box:
    """Find the smallest box around all edited pixels. Raises InvalidInput if there are none."""
    require_edit(mask)
    edited = mask >= 0.5
    rows = np.flatnonzero(edited.any(axis=1))
    columns = np.flatnonzero(edited.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def context_box(
    box: Box,
    image_size: Size,
    *,
    native: int,
    multiple: int,
    context: float,
    min_context: int,
    whole: bool,
    max_aspect: int,
) -> Crop:
    """Choose the crop to work on: around the mask's box, inside the photograph.

    native: the side that the model was trained at. multiple: what its sizes must divide by.
    context: the crop's side over the box's longer side, at least 1. min_context: pixels that
    remain for the surroundings, both sides together, measured at the model's resolution; less than
    native, else InvalidInput is raised.

    A photograph of native x native is worked on whole, if `whole`. Otherwise the crop is a square, centred
    on the box and moved to lie inside the photograph. Where the photograph is too narrow for it, the
    crop is cut to it in that direction, its shorter side becomes native and its longer side the
    nearest multiple at which shapes keep their proportions, if there is one. Up to max_aspect : 1, that
    is; of a longer crop the longer side becomes max_aspect x native, and the shorter what follows.
    """
    if whole and image_size == (native, native):
        return Crop(Box(0, 0, native, native), (native, native))
    if min_context >= native:
        raise InvalidInput(f"context of {min_context} pixels: expected less than the model's {native}")
    longest = max(box.height, box.width)
    wanted = max(context * longest, longest * native / (native - min_context))
    side = math.ceil(wanted - 1e-9)  # 1.2 * 35 is 42, whatever the last bit says
    height, width = min(side, image_size[0]), min(side, image_size[1])
    if height <= width:
        width, size = _long_side(height, width, box.width, image_size[1], native, multiple, max_aspect)
    else:
        height, (across, along) = _long_side(
            width, height, box.height, image_size[0], native, multiple, max_aspect
        )
        size = (along, across)
    top = _centred(box.top, box.height, height, image_size[0])
    left = _centred(box.left, box.width, width, image_size[1])
    return Crop(Box(top, left, height, width), size)


def feather_inside(mask: FloatArray, radius: int) -> FloatArray:
    """Soften a mask's edge inwards: exactly 0 where the mask is 0, rising to the mask within.

    The ramp is a smooth step over the Euclidean distance to the nearest pixel outside: just over 0
    on the outermost pixels, the mask's own value from `radius` pixels further in. In a connected
    part too thin for that, the ramp is shortened so that its middle keeps the mask's full value.
    The photograph's border is no edge. Radius 0 gives the mask itself.
    """
    inside = mask > 0
    if radius == 0 or inside.all() or not inside.any():
        return mask.copy()
    # The nearest pixel outside lies no farther than a pixel from the box of what is inside.
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    around = tuple(slice(max(0, at[0] - 1), at[-1] + 2) for at in (rows, columns))
    soft = np.zeros_like(mask, np.float32)
    soft[around] = _feathered(mask[around], radius)
    return soft


def _feathered(mask: FloatArray, radius: int) -> FloatArray:
    """`feather_inside` of a mask that has an edge, in a look at every pixel."""
    bits = (mask > 0).astype(np.uint8)
    distance = cv2.distanceTransform(bits, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    count, labels = cv2.connectedComponents(bits, connectivity=8)
    part = np.asarray(labels, np.int32)  # 0 outside
    deepest = np.zeros(count, np.float32)
    np.maximum.at(deepest, part, distance)
    deepest[0] = 1  # the distance outside is 0: any divisor will do
    ramp = np.minimum(distance / np.minimum(deepest, np.float32(radius + 1))[part], 1)
    return np.asarray(mask * ramp * ramp * (3 - 2 * ramp), np.float32)


def _any_in_cells(edited: npt.NDArray[np.bool_], cells: int) -> npt.NDArray[np.bool_]:
    """Divide the rows into cells, outwards to whole pixels; any edited pixel edits its cell."""
    rows = edited.shape[0]
    first = np.arange(cells) * rows // cells
    behind = -(np.arange(1, cells + 1) * -rows // cells)  # rounded up
    count = np.zeros((rows + 1, edited.shape[1]), np.int32)  # edited pixels above each row
    np.cumsum(edited, axis=0, out=count[1:])
    covered: npt.NDArray[np.bool_] = count[behind] > count[first]
    return covered


def _dilate(m_latent: FloatArray, radius: int) -> FloatArray:
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return np.asarray(cv2.dilate(m_latent, kernel), np.float32)


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


def _centred(start: int, length: int, crop: int, available: int) -> int:
    """Place a crop around start .. start + length, moved to lie within 0 .. available."""
    return min(max(start + (length - crop) // 2, 0), available - crop)


def _long_side(
    short: int, long: int, box_long: int, available: int, native: int, multiple: int, max_aspect: int
) -> tuple[int, Size]:
    """Fit a crop's long side to the sizes a model takes; returns it and the size (short, long).

    The side may move between the mask's box and the photograph; it stays where it is if no size in
    that range keeps proportions.
    """
    if long > max_aspect * short:
        across = max(1, round(max_aspect * native * short / long / multiple)) * multiple
        return long, (across, max_aspect * native)
    units = native * long / short / multiple
    for count in (round(units), math.floor(units), math.ceil(units)):
        fitting = round(count * multiple * short / native)
        if box_long <= fitting <= available and count * multiple >= native:
            return fitting, (native, count * multiple)
    return long, (native, max(native, round(units) * multiple))
