"""Colour profiles: to sRGB for the model's eyes, and back to the photograph's own space.

A photograph keeps its own numbers and its profile. Only the copy that a model sees is converted,
and what the model paints is converted back, so that a Display P3 picture stays one.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_SRGB_TOLERANCE = 1  # 8-bit levels: the many profiles that call themselves sRGB differ by rounding


def to_srgb(pixels: Pixels, icc_profile: bytes | None) -> npt.NDArray[np.float32]:
    """Convert pixels h w 3 (uint8 or uint16) of a profile to sRGB, float32 in [0, 1].

    Exact without a profile, with an sRGB profile and with one that cannot be used (see
    `is_usable`); any other profile is applied in 8 bits.
    """
    if icc_profile is None or not _changes_colour(icc_profile):
        return np.divide(pixels, np.iinfo(pixels.dtype).max, dtype=np.float32)
    eight_bit = pixels if pixels.dtype == np.uint8 else _quantise(pixels / 65535.0, np.uint8)
    converted = _convert(Image.fromarray(eight_bit), _open(icc_profile), _srgb())
    return np.asarray(converted, dtype=np.float32) / np.float32(255)


def from_srgb(
    rgb: npt.NDArray[np.float32], icc_profile: bytes | None, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Convert sRGB h w 3 to pixels of a profile, rounded to `dtype` (uint8 or uint16).

    Values lie in [0, 1]; what rounding put beyond is cut. The inverse of `to_srgb`, and exact
    under the same conditions; any other profile is applied in 8 bits.
    """
    if icc_profile is None or not _changes_colour(icc_profile):
        return _quantise(rgb, dtype)
    converted = _convert(Image.fromarray(_quantise(rgb, np.uint8)), _srgb(), _open(icc_profile))
    pixels = np.array(converted)
    return pixels if np.dtype(dtype) == np.uint8 else pixels.astype(np.uint16) * 257


def cmyk_to_rgb(image: Image.Image, icc_profile: bytes | None) -> tuple[Image.Image, str]:
    """Convert a CMYK picture to sRGB: through its profile where it has a usable one.

    Returns the picture and a note that says how it was done.
    """
    if icc_profile is not None and profile_space(icc_profile) == "CMYK":
        try:
            converted = _convert(image, _open(icc_profile), _srgb())
        except (ImageCms.PyCMSError, OSError):
            return image.convert("RGB"), "CMYK converted to RGB (its ICC profile cannot be read)"
        return converted, "CMYK converted to RGB through its ICC profile"
    return image.convert("RGB"), "CMYK converted to RGB (it has no CMYK profile)"


def profile_space(icc_profile: bytes) -> str:
    """Name the colour space that a profile describes: "RGB", "GRAY", "CMYK", "Lab", ..."""
    return icc_profile[16:20].decode("latin-1").strip()


def is_usable(icc_profile: bytes) -> bool:
    """Tell whether a profile converts RGB to sRGB and back; if not, pixels are taken as sRGB."""
    return _largest_change(icc_profile) is not None


def _changes_colour(icc_profile: bytes) -> bool:
    change = _largest_change(icc_profile)
    return change is not None and change > _SRGB_TOLERANCE


@lru_cache(maxsize=8)
def _largest_change(icc_profile: bytes) -> int | None:
    """Compare a profile with sRGB on a cube of 9x9x9 colours, in 8-bit levels; None: unusable."""
    levels = np.rint(np.linspace(0, 255, 9)).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    try:
        profile = _open(icc_profile)
        there = np.asarray(_convert(Image.fromarray(cube), profile, _srgb()))
        _convert(Image.fromarray(cube), _srgb(), profile)
    except (ImageCms.PyCMSError, OSError):
        return None
    return int(np.abs(there.astype(int) - cube).max())


def _convert(
    image: Image.Image, source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile
) -> Image.Image:
    """Apply the conversion that image editors default to: colorimetric, black kept black."""
    converted = ImageCms.profileToProfile(
        image,
        source,
        target,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return image if converted is None else converted  # None only when converting in place


def _open(icc_profile: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _quantise(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Round values in [0, 1] to the whole range of an unsigned integer type."""
    top = np.iinfo(np.dtype(dtype)).max
    levels: npt.NDArray[Any] = np.rint(np.clip(values, 0, 1) * np.float32(top)).astype(dtype)
    return levels
