"""What an edit did to the photograph around it: background error, similarity, and the seam."""

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from bld.images import Photograph
from bld.masks import Box, FloatArray

SSIM_SIGMA, SSIM_WINDOW = 1.5, 11  # Wang et al. 2004, as everybody computes it
LUMA = np.array([0.299, 0.587, 0.114])


class Fidelity(NamedTuple):
    """How true a result is to the photograph outside the mask (where the mask is 0), and at its edge.

    max_error: largest difference of a channel, in 8-bit levels (0 to 255). psnr: dB; None if identical
    or if there is no outside. ssim: mean over the outside, 1 if identical. seam: the mean step in
    luminance across the mask's edge over the same step in the photograph; 1 is as smooth as it was,
    None if the mask has no edge.
    """

    max_error: float
    psnr: float | None
    ssim: float
    seam: float | None


def fidelity(
    photograph: Photograph, result: Photograph, mask: FloatArray, box: Box | None = None
) -> Fidelity:
    """Compare a result with its photograph. mask: h w in [0, 1], 1 = edit.

    box: what may differ; the rest of the two is not looked at, which saves memory on a large photograph.
    """
    edited = box or Box(0, 0, *photograph.size)
    rows, columns = edited.slices
    near = (  # a similarity's window reaches out of the box, and so does the mask's edge
        slice(max(0, rows.start - SSIM_WINDOW), rows.stop + SSIM_WINDOW),
        slice(max(0, columns.start - SSIM_WINDOW), columns.stop + SSIM_WINDOW),
    )
    levels = 255 / np.iinfo(photograph.pixels.dtype).max
    outside, everywhere = mask[near] == 0, int(np.count_nonzero(mask == 0))
    before, after = photograph.pixels[near] * levels, result.pixels[near] * levels
    difference = after[outside] - before[outside]
    seam = seam_score(before @ LUMA, after @ LUMA, ~outside)
    if not difference.any():
        return Fidelity(0.0, None, 1.0, seam)
    psnr = float(10 * np.log10(255**2 * 3 * everywhere / np.square(difference).sum()))
    # What the mask allows must not count: inside, both pictures are made the same.
    kept = np.where(outside[..., None], after, before)
    unlike = float((1 - _ssim(before @ LUMA, kept @ LUMA)[outside]).sum())
    return Fidelity(float(np.abs(difference).max()), psnr, 1 - unlike / everywhere, seam)


def seam_score(
    before: npt.NDArray[Any], after: npt.NDArray[Any], inside: npt.NDArray[np.bool_]
) -> float | None:
    """Mean step between neighbours on either side of the mask's edge, over that in the photograph.

    before, after: h w in 8-bit levels. Steps of the photograph under one level count as one: in a flat
    sky any seam would be infinite.
    """
    steps = []
    for picture in (after, before):
        down = np.abs(np.diff(picture, axis=0))[inside[1:] != inside[:-1]]
        across = np.abs(np.diff(picture, axis=1))[inside[:, 1:] != inside[:, :-1]]
        steps.append(np.concatenate([down, across]))
    if not steps[0].size:
        return None
    return float(steps[0].mean() / max(steps[1].mean(), 1.0))


def _ssim(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Structural similarity of two pictures h w in 8-bit levels, per pixel."""

    def blur(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(cv2.GaussianBlur(x, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    variance = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return np.asarray(similarity / ((mean_a**2 + mean_b**2 + c1) * (variance + c2)))
