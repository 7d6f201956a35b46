"""Background reconstruction: from what the decoder gives to the picture a user gets (section 4.2).

Every way has one signature: it takes a `Scene` and returns the crop's pixels. What lies outside the crop
is never touched by any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bld.images import Photograph, from_srgb, resize_pixels
from bld.masks import Box, FloatArray, feather_inside
from bld.options import Reconstruction

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Scene:
    """One candidate before its background is reconstructed.

    photograph: the whole of it. box: the crop the model worked on. mask: h w of the photograph, 1 = edit.
    decoded: D(z_0) at the model's size, h w 3 in [0, 1], sRGB. feather: width of a soft edge, px.
    """

    photograph: Photograph
    box: Box
    mask: FloatArray
    decoded: FloatArray
    feather: int

    def generated(self) -> Array:
        """The decoder's picture at the crop's size, in the photograph's colour space and depth."""
        rgb = resize_pixels(self.decoded, (self.box.height, self.box.width))
        return from_srgb(rgb, self.photograph.icc_profile, self.photograph.pixels.dtype)


def none(scene: Scene) -> Array:
    """The decoder's picture as it is, background and all."""
    return scene.generated()


def stitch(scene: Scene) -> Array:
    """The decoder's picture inside the mask, the photograph's own pixels outside, to the byte.

    The edge is feathered on the inside only, over the whole photograph's mask, so that a mask that
    runs past the crop is not feathered at the crop's border.
    """
    original = scene.photograph.pixels[scene.box.slices]
    weight = feather_inside(scene.mask, scene.feather)[scene.box.slices][..., None]
    mixed = np.rint(original + weight * (scene.generated().astype(np.float64) - original))
    return np.where(weight > 0, mixed.astype(original.dtype), original)


WAYS: dict[Reconstruction, Callable[[Scene], Array]] = {"none": none, "stitch": stitch}


def reconstruct(way: Reconstruction, scene: Scene) -> Photograph:
    """The finished photograph: size, depth, profile and alpha are the original's."""
    pixels = scene.photograph.pixels.copy()
    pixels[scene.box.slices] = WAYS[way](scene)
    return Photograph(pixels, scene.photograph.alpha, scene.photograph.icc_profile)


class BackgroundError(NamedTuple):
    """How far a result is from the photograph outside the mask.

    max: largest difference of a channel, in 8-bit levels (0 to 255). psnr: dB; None if identical or if
    there is no outside.
    """

    max: float
    psnr: float | None


def background_error(photograph: Photograph, result: Photograph, mask: FloatArray) -> BackgroundError:
    """Compare outside the mask, where mask is 0."""
    scale = 255 / np.iinfo(photograph.pixels.dtype).max
    difference = result.pixels[mask == 0].astype(np.float64) - photograph.pixels[mask == 0]
    if not difference.any():
        return BackgroundError(0.0, None)
    mean = float(np.square(difference * scale).mean())
    return BackgroundError(float(np.abs(difference).max() * scale), float(10 * np.log10(255**2 / mean)))
