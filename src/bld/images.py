"""Pictures: open and check, orient, read masks, convert to tensors and back, save.

The only place that knows Pillow's modes. A photograph keeps its own numbers, depth, profile and
alpha; whatever reading had to convert is said in its notes. Sizes are (height, width) in code and
WIDTHxHEIGHT in messages.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from bld import colour, png
from bld.colour import from_srgb, to_srgb
from bld.decode import Raster, Source, decode
from bld.errors import BldError, InvalidInput
from bld.options import MaskMode

if TYPE_CHECKING:
    import torch

__all__ = [
    "MaskImage",
    "Photograph",
    "Source",
    "from_srgb",
    "from_tensor",
    "open_photograph",
    "read_mask",
    "read_text_chunks",
    "resize_mask",
    "resize_pixels",
    "save_png",
    "seen",
    "to_pil",
    "to_srgb",
    "to_tensor",
    "write_text_atomic",
]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph as its file holds it.

    pixels: h w 3, uint8 or uint16, in the colour space of `icc_profile` (sRGB where it is None).
    alpha: h w of the same dtype, or None. notes: what reading converted, e.g. "EXIF orientation 6
    applied".
    """

    pixels: Array
    alpha: Array | None = None
    icc_profile: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.pixels.shape[:2]
        return height, width


@dataclass(frozen=True, eq=False)
class MaskImage:
    """A mask as given: values h w, float32 in [0, 1]; the note says how they were read."""

    values: FloatArray
    note: str


def open_photograph(source: Source | Photograph, *, max_pixels: int) -> Photograph:
    """Open a photograph: a path, a file's bytes, a PIL image, or an array h w (3 | 4).

    One that is open already is returned as it is. Arrays are uint8 or uint16. Pixels are copied:
    nothing done to them reaches the source. Raises InvalidInput for whatever is not a readable
    picture of 1 to `max_pixels` pixels.
    """
    if isinstance(source, Photograph):
        return source
    raster = decode(source, max_pixels=max_pixels, what="image")
    if raster.colour.dtype not in (np.uint8, np.uint16):
        raise InvalidInput(
            f"image: its values are {raster.colour.dtype}, expected uint8 or uint16; "
            "scale them to 0..255 and round them to uint8"
        )
    icc_profile, notes = _rgb_profile(raster.icc_profile)
    pixels = raster.colour
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
        notes.append("greyscale shown as RGB")
    return Photograph(pixels, raster.alpha, icc_profile, (*raster.notes, *notes))


def read_mask(source: Source, *, mode: MaskMode = "auto", max_pixels: int) -> MaskImage:
    """Read a mask: any picture that `open_photograph` takes, or an array of bool or float.

    Float values must lie in [0, 1]. "luminance" reads how light a pixel is, "alpha" how opaque, and
    "transparency" takes the pixels that are not opaque at all, as the OpenAI images API does.
    "auto" reads luminance where the picture has no alpha channel, or an opaque one, or where its
    luminance has exactly two levels, one on each side of one half; else alpha. The note says which.
    Raises InvalidInput for an unreadable picture, for "alpha" and "transparency" without an alpha channel,
    and for integer values of only 0 and 1, all of them nearly black.
    """
    raster = decode(source, max_pixels=max_pixels, what="mask")
    for values in (raster.colour, raster.alpha):
        _check_mask_values(values)
    channel, why = _mask_channel(raster, mode)
    if raster.colour.dtype.kind == "u":
        top = np.iinfo(raster.colour.dtype).max
        if np.rint(channel.max() * top) == 1:
            raise InvalidInput(
                f"mask: its largest value is 1 where white is {top}; give 0 and {top}, or bools"
            )
    return MaskImage(channel, "; ".join([f"mask read from {why}", *raster.notes]))


def resize_mask(values: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resize a mask h w to `size` by nearest neighbour, so that no new values appear.

    For an explicit request only: a line thinner than the ratio of the sizes may vanish.
    """
    height, width = size
    return np.asarray(
        cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.float32
    )


def resize_pixels(pixels: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resize pixels h w 3 (or h w), float32 in [0, 1], to `size`; the result stays in [0, 1].

    A side that shrinks is averaged by area, a side that grows is interpolated by bicubic curves,
    whose overshoot is cut. Always a new array; the same size gives an exact copy.
    """
    (height, width), resized = size, pixels.copy()
    smaller = (min(width, pixels.shape[1]), min(height, pixels.shape[0]))
    if smaller != (pixels.shape[1], pixels.shape[0]):
        resized = np.asarray(cv2.resize(resized, smaller, interpolation=cv2.INTER_AREA))
    if smaller != (width, height):
        resized = np.asarray(cv2.resize(resized, (width, height), interpolation=cv2.INTER_CUBIC))
    return np.clip(resized, np.float32(0), np.float32(1)).astype(np.float32, copy=False)


def seen(photograph: Photograph, crop: tuple[slice, slice], size: tuple[int, int]) -> FloatArray:
    """What a model of `size` sees of a crop: h w 3 in [0, 1], sRGB."""
    return resize_pixels(to_srgb(photograph.pixels[crop], photograph.icc_profile), size)


def to_tensor(rgb: FloatArray) -> "torch.Tensor":
    """Turn pixels h w 3 in [0, 1] into a batch of one: 1 3 h w, float32 in [-1, 1]."""
    import torch

    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], dtype=np.float32)
    return torch.from_numpy(planes) * 2 - 1


def from_tensor(batch: "torch.Tensor") -> FloatArray:
    """Turn a batch n 3 h w into pixels n h w 3, float32 in [0, 1].

    [-1, 1] is the range that a decoder is trained to; what it gives beyond is cut. Raises BldError
    for values that are not finite, which would otherwise become a black picture.
    """
    import torch

    pixels = batch.detach().to(device="cpu", dtype=torch.float32)
    if not bool(torch.isfinite(pixels).all()):
        raise BldError(
            "the decoder gave values that are not numbers: use dtype float32, and where it is tuned a "
            "smaller --tune-lr"
        )
    in_range = ((pixels + 1) / 2).clamp(0, 1)
    return np.ascontiguousarray(in_range.permute(0, 2, 3, 1).numpy())


def to_pil(photograph: Photograph) -> Image.Image:
    """Show a photograph to Pillow: RGB or RGBA in 8 bits, with its profile, which Pillow saves too."""
    channels = [photograph.pixels]
    if photograph.alpha is not None:
        channels.append(photograph.alpha[..., None])
    array = np.concatenate(channels, axis=2)
    if array.dtype == np.uint16:
        array = np.rint(array / 257).astype(np.uint8)
    image = Image.fromarray(array)
    if photograph.icc_profile is not None:
        image.info["icc_profile"] = photograph.icc_profile
    return image


def save_png(
    path: str | Path,
    picture: Photograph | Array,
    *,
    alpha: Array | None = None,
    icc_profile: bytes | None = None,
    text: Mapping[str, str] | None = None,
) -> None:
    """Save a photograph, or pixels h w (3) as uint8 or uint16, as PNG: whole or not at all.

    Alpha and profile are the photograph's own unless given. The same input gives the same bytes.
    Raises InvalidInput if the file cannot be written, ValueError for pixels that no PNG holds.
    """
    pixels = picture.pixels if isinstance(picture, Photograph) else picture
    if isinstance(picture, Photograph):
        alpha = picture.alpha if alpha is None else alpha
        icc_profile = picture.icc_profile if icc_profile is None else icc_profile
    stream = png.encode_png(pixels, alpha=alpha, icc_profile=icc_profile, text=text)
    with _written_atomically(Path(path)) as file:
        file.write(stream)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file: whole or not at all. Raises InvalidInput if it cannot be written."""
    with _written_atomically(Path(path)) as file:
        file.write(text.encode("utf-8"))


def read_text_chunks(path: str | Path) -> dict[str, str]:
    """Read the text chunks of a PNG without decoding its pixels.

    Returns {} for a PNG that has none and for a file of another kind. Raises InvalidInput for a
    file that cannot be read and for a damaged PNG.
    """
    try:
        stream = Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not stream.startswith(png.SIGNATURE):
        return {}
    try:
        return png.read_text(stream)
    except ValueError as error:
        raise InvalidInput(f"{path} is a damaged PNG ({error}); copy or export it again") from error


def _rgb_profile(profile: bytes | None) -> tuple[bytes | None, list[str]]:
    """Keep a profile if it describes RGB pixels; returns it, or None, and notes."""
    if profile is None:
        return None, []
    space = colour.profile_space(profile)
    if space != "RGB":
        return None, [f"ICC profile dropped: it describes {space or 'nothing'}, the result is RGB"]
    if not colour.is_usable(profile):
        return profile, ["ICC profile kept but not readable: colours are edited as if sRGB"]
    return profile, []


def _check_mask_values(values: Array | None) -> None:
    """Refuse what is neither bool, uint8, uint16 nor a float in [0, 1]."""
    if values is None:
        return
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InvalidInput(
                f"mask: its values reach from {values.min():g} to {values.max():g}, "
                "expected [0, 1]; scale them"
            )
    elif values.dtype not in (np.bool_, np.uint8, np.uint16):
        raise InvalidInput(
            f"mask: its values are {values.dtype}, expected bool, uint8, uint16 or float in [0, 1]"
        )


def _mask_channel(raster: Raster, mode: MaskMode) -> tuple[FloatArray, str]:
    """Choose the channel that carries the mask; returns it in [0, 1] with its name and why."""
    luminance, alpha = _luminance(raster.colour), raster.alpha
    if mode in ("alpha", "transparency"):
        if alpha is None:
            raise InvalidInput("mask: it has no alpha channel to read; use --mask-mode luminance or auto")
        return (_unit(alpha), mode) if mode == "alpha" else ((alpha == 0).astype(np.float32), mode)
    if mode == "luminance" or alpha is None:
        return luminance, "luminance"
    opacity = _unit(alpha)
    if opacity.min() == 1:
        return luminance, "luminance (its alpha is opaque everywhere)"
    if _has_two_levels(luminance):
        return luminance, "luminance (it has two levels)"
    return opacity, "alpha (its luminance does not have two levels)"


def _has_two_levels(values: FloatArray) -> bool:
    low, high = values.min(), values.max()
    return bool(low < 0.5 <= high and np.all((values == low) | (values == high)))


def _luminance(pixels: Array) -> FloatArray:
    """Weigh red, green and blue as Rec. 601 does, as image editors turn colour to grey."""
    if pixels.ndim == 2:
        return _unit(pixels)
    red, green, blue = np.moveaxis(_unit(pixels).astype(np.float64), -1, 0)
    return np.asarray(np.minimum(0.299 * red + 0.587 * green + 0.114 * blue, 1), np.float32)


def _unit(channel: Array) -> FloatArray:
    """Scale bool, uint8 or uint16 to [0, 1]; floats lie there already."""
    if channel.dtype.kind != "u":
        return channel.astype(np.float32)
    return np.divide(channel, np.iinfo(channel.dtype).max, dtype=np.float32)


@contextmanager
def _written_atomically(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the name `path` only when it is complete and on the disk.

    On any exception, KeyboardInterrupt included, `path` stays as it was and nothing is left over.
    """
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise InvalidInput(f"cannot write {path}: {reason}; choose another place") from error
