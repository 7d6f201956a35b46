"""From a file, its bytes, a PIL image or an array to channels that can be trusted.

Everything is checked before it is decoded and decoded as a whole, so that a bomb, a truncated
download or a text file with the wrong name ends in one clear InvalidInput, never in Pillow's own
exceptions. Depth is kept: Pillow reads 16-bit colour as 8-bit, so OpenCV decodes that.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from bld.colour import cmyk_to_rgb
from bld.errors import InvalidInput

Array = npt.NDArray[Any]
Channels = tuple[Array, Array | None, list[str]]  # colour, alpha, notes of what was converted
Source = str | Path | bytes | Image.Image | Array

# What cameras, browsers and editors write. Not everything Pillow knows: some of its formats are
# read by starting other programs, and nobody keeps photographs in them.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
_GREY_MODES = ("1", "L", "LA", "La")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # of 255, from one level to the next
_ORIENTATION = 0x0112  # the EXIF tag
_BITS, _SENSE, _PLANES = 258, 262, 284  # a TIFF's tags: of a sample; 0 is white; 2 is channel by channel
_PILLOW_LIMIT = threading.Lock()


@dataclass(frozen=True, eq=False)
class Raster:
    """A decoded, upright picture, before anyone says what it is for.

    colour: h w (grey) or h w 3; uint8 or uint16, from an array or PIL's mode F any dtype. alpha:
    h w of the same dtype, or None. icc_profile: the file's own, whatever it describes.
    """

    colour: Array
    alpha: Array | None
    icc_profile: bytes | None = None
    notes: tuple[str, ...] = ()


def decode(source: Source, *, max_pixels: int, what: str) -> Raster:
    """Decode a picture; `what` ("image" or "mask") names it in messages.

    Raises InvalidInput if it is missing, unreadable, truncated, empty, or over `max_pixels`.
    """
    name = f"{what} {source}" if isinstance(source, str | Path) else what
    with _own_errors(name):
        if isinstance(source, np.ndarray):
            return _from_array(source, max_pixels, name)
        if isinstance(source, Image.Image):
            return _from_picture(source, None, max_pixels, name)
        if isinstance(source, bytes):
            return _from_file(source, max_pixels, name)
        if isinstance(source, str | Path):
            return _from_file(_existing_file(Path(source), name), max_pixels, name)
    raise InvalidInput(
        f"{what}: got {type(source).__name__}, expected a path, bytes, a PIL image or an array"
    )


def picture_size(path: str | Path, *, max_pixels: int, what: str) -> tuple[int, int]:
    """(height, width) as a file's head has them, before an orientation is applied; no pixel is decoded.

    Raises InvalidInput as `decode` does for what the head shows: not for a file that is cut short.
    """
    name = f"{what} {path}"
    with _own_errors(name), _opened(_existing_file(Path(path), name), name) as image:
        _check_size((image.height, image.width), max_pixels, name)
        return image.height, image.width


def _existing_file(path: Path, name: str) -> Path:
    if path.is_dir():
        raise InvalidInput(f"{name} is a folder, expected a picture file; name the file in it")
    if not path.is_file():
        raise InvalidInput(f"{name} does not exist; check the path")
    return path


def _from_file(file: Path | bytes, max_pixels: int, name: str) -> Raster:
    """Decode an encoded picture that lies on the disk or in memory."""
    with _opened(file, name) as image:
        return _from_picture(image, file, max_pixels, name)


@contextmanager
def _opened(file: Path | bytes, name: str) -> Iterator[Image.Image]:
    """A picture whose head has been read."""
    length = len(file) if isinstance(file, bytes) else file.stat().st_size
    if length == 0:
        raise InvalidInput(f"{name} is empty (0 bytes); copy or export it again")
    with _without_pillow_limit():
        Image.init()
        formats = [known for known in FORMATS if known in Image.OPEN]
        opened = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(opened, formats=formats) as image:
            yield image


def _from_picture(image: Image.Image, file: Path | bytes | None, max_pixels: int, name: str) -> Raster:
    """Decode an opened PIL image; `file` is where it came from, if that is known."""
    _check_size((image.height, image.width), max_pixels, name)
    _check_planes(image, name)
    several = file is not None and getattr(image, "is_animated", False)
    layout = _file_layout(image)
    # Pillow and OpenCV turn a TIFF upright while they load it, and only a TIFF.
    turned = _orientation(image) if image.format == "TIFF" else 1
    _load(image)
    to_turn = _orientation(image)
    if file is not None and layout.startswith(("RGB;16", "RGBA;16", "LA;16")):
        pixels, alpha, notes = _decode_deep(file)
    else:
        pixels, alpha, notes = _channels(_scaled(image, layout), name)
        if ";16" in layout and pixels.dtype == np.uint8:
            notes.append("16 bits read as 8")
    if several:
        notes.append("several pictures in the file: the first is used")
    if max(turned, to_turn) != 1:
        notes.append(f"EXIF orientation {max(turned, to_turn)} applied")
    return Raster(
        _upright(pixels, to_turn),
        None if alpha is None else _upright(alpha, to_turn),
        None if image.mode == "CMYK" else image.info.get("icc_profile"),
        tuple(notes),
    )


def _load(image: Image.Image) -> None:
    """Decode without the file's name: by that Pillow maps raw pixels, of a turned TIFF at the wrong size."""
    name = getattr(image, "filename", None)
    if not name:
        image.load()
        return
    image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        image.filename = name  # type: ignore[attr-defined]


def _check_planes(image: Image.Image, name: str) -> None:
    """Refuse a TIFF of deep planes, of which Pillow and OpenCV make noise and say nothing."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANES) == 2 and len(tags.get(_BITS, ())) > 1 and max(tags[_BITS]) > 8:
        raise InvalidInput(
            f"{name} is a TIFF that holds channel after channel in {max(tags[_BITS])} bits, which cannot be "
            "read; save it with its channels interleaved, or as PNG"
        )


def _file_layout(image: Image.Image) -> str:
    """Name the layout of the pixels in a file that is not loaded yet, e.g. "RGB;16B"."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments if isinstance(arguments, str) else (arguments or [""])[0])


def _scaled(image: Image.Image, layout: str) -> Image.Image:
    """A picture whose transparent level is on the scale that Pillow has put its few bits of grey on."""
    clear = image.info.get("transparency")
    if layout not in _GREY_STEPS or not isinstance(clear, int):
        return image
    scaled = image.copy()
    scaled.info["transparency"] = clear * _GREY_STEPS[layout]
    return scaled


def _decode_deep(file: Path | bytes) -> Channels:
    """Decode 16-bit colour, which Pillow would cut to 8 bits."""
    stream = file if isinstance(file, bytes) else file.read_bytes()
    bgr = cv2.imdecode(np.frombuffer(stream, np.uint8), cv2.IMREAD_UNCHANGED)  # h w 3 | 4
    if bgr is None or bgr.dtype != np.uint16 or bgr.ndim != 3:
        raise ValueError("its 16-bit pixels cannot be decoded")
    return bgr[..., 2::-1], bgr[..., 3] if bgr.shape[2] == 4 else None, []


def _channels(image: Image.Image, name: str) -> Channels:
    """Split a loaded PIL image of any mode."""
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        return _deep_grey(image, name)
    if mode == "F":
        return np.asarray(image), None, []
    notes = []
    if mode == "CMYK":
        image, note = cmyk_to_rgb(image, image.info.get("icc_profile"))
        notes.append(note)
    elif mode not in (*_GREY_MODES, "RGB", "RGBA", "RGBa", "RGBX"):
        notes.append(f"{'palette' if mode in ('P', 'PA') else mode} converted to RGB")
    target = "L" if mode in _GREY_MODES else "RGB"
    if not image.has_transparency_data:
        return np.asarray(image.convert(target)), None, notes
    array = np.asarray(image.convert(f"{target}A"))
    return array[..., 0] if target == "L" else array[..., :3], array[..., -1], notes


def _deep_grey(image: Image.Image, name: str) -> Channels:
    """Read grey of more than 8 bits; one of its levels may stand for transparent.

    Of a TIFF Pillow hands on the levels as they stand in the file: 12 bits may be all of them, and 0 white.
    """
    levels, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if levels.min() < 0 or levels.max() > 65535:
        raise InvalidInput(f"{name} has values beyond 16 bits; save it as an 8- or 16-bit picture")
    if tags.get(_BITS) == (12,):
        levels = np.rint(levels * (65535 / 4095))
    if tags.get(_SENSE) == 0:
        levels = 65535 - levels
    grey, clear = levels.astype(np.uint16), image.info.get("transparency")
    if not isinstance(clear, int):
        return grey, None, []
    return grey, np.where(grey == clear, 0, 65535).astype(np.uint16), []


def _from_array(array: Array, max_pixels: int, name: str) -> Raster:
    """Take an array h w, h w 1, h w 3 or h w 4, of any type."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InvalidInput(f"{name}: got an array of shape {array.shape}, expected h w (1, 3 or 4)")
    _check_size(array.shape[:2], max_pixels, name)
    if array.ndim == 2 or array.shape[2] == 1:
        return Raster(array.reshape(array.shape[:2]).copy(), None)
    return Raster(array[..., :3].copy(), array[..., 3].copy() if array.shape[2] == 4 else None)


def _check_size(size: tuple[int, ...], max_pixels: int, name: str) -> None:
    height, width = size
    if height == 0 or width == 0:
        raise InvalidInput(f"{name} has no pixels: its size is {width}x{height}")
    if height * width > max_pixels:
        raise InvalidInput(
            f"{name} is {width}x{height} = {height * width} pixels, over the limit of "
            f"{max_pixels}; make it smaller, or raise the limit with --max-pixels"
        )


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; whatever is missing or unreadable counts as upright."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF raises many types; the pixels are none the worse for it
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(array: Array, orientation: int) -> Array:
    """Undo an EXIF orientation: mirror first where it says so, then turn."""
    mirrored = array[:, ::-1] if orientation in (2, 4, 5, 7) else array
    quarter_turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)  # anticlockwise
    return np.array(np.rot90(mirrored, quarter_turns), order="C")  # always a copy


@contextmanager
def _own_errors(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into InvalidInput."""
    try:
        yield
    except InvalidInput:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InvalidInput(f"{name} is not a picture that can be read; expected one of {known}") from error
    except PermissionError as error:
        raise InvalidInput(f"{name} may not be read: {error.strerror}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise InvalidInput(f"{name} is damaged or cut short ({error}); copy or export it again") from error


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Set Pillow's own limit of pixels aside, so that the caller's is the only one.

    It is a global of Pillow's: the lock keeps two threads from restoring it in the wrong order.
    """
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
