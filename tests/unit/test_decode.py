"""Reading photographs: every mode and turn that files come in, and every bad file."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from bld.errors import InvalidInput
from bld.images import (
    open_photograph,
    read_mask,
)
from bld.png import Chunk, encode_png
from tests.pictures import ALPHA, DEEP, DEEP_ALPHA, DEEP_GREY, GREY, LIMIT, RGB, encoded, opened, with_chunks

# --- modes ---


def test_rgb_and_rgba_keep_their_numbers() -> None:
    photograph = opened(encoded(RGB))
    np.testing.assert_array_equal(photograph.pixels, RGB)
    assert (photograph.alpha, photograph.icc_profile, photograph.notes) == (None, None, ())
    assert photograph.size == (5, 7)
    photograph = opened(encoded(np.dstack([RGB, ALPHA])))
    np.testing.assert_array_equal(photograph.pixels, RGB)
    np.testing.assert_array_equal(photograph.alpha, ALPHA)
    assert photograph.notes == ()


@pytest.mark.parametrize("alpha", [None, DEEP_ALPHA], ids=["rgb", "rgba"])
@pytest.mark.parametrize("kind", [".png", ".tif"])
@pytest.mark.parametrize("on_disk", [True, False])
def test_16_bit_colour_is_kept(tmp_path: Path, alpha: np.ndarray | None, kind: str, on_disk: bool) -> None:
    bgr = DEEP[..., ::-1] if alpha is None else np.dstack([DEEP[..., ::-1], alpha])
    stream = cv2.imencode(kind, bgr)[1].tobytes()
    (tmp_path / "deep").write_bytes(stream)
    photograph = opened(tmp_path / "deep" if on_disk else stream)
    assert photograph.pixels.dtype == np.uint16
    np.testing.assert_array_equal(photograph.pixels, DEEP)
    if alpha is None:
        assert photograph.alpha is None
    else:
        np.testing.assert_array_equal(photograph.alpha, alpha)
    assert photograph.notes == ()


def deep_grey_alpha_png() -> bytes:
    """16-bit grey with alpha, which neither Pillow nor OpenCV writes."""
    rows = np.dstack([DEEP_GREY, DEEP_ALPHA]).astype(">u2").reshape(5, -1)
    header = Chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 4, 0, 0, 0))
    data = Chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return encoded(RGB)[:8] + b"".join(c.to_bytes() for c in (header, data, Chunk(b"IEND", b"")))


@pytest.mark.parametrize("alpha", [False, True])
def test_16_bit_grey_is_kept(alpha: bool) -> None:
    photograph = opened(deep_grey_alpha_png() if alpha else encoded(DEEP_GREY))
    assert photograph.pixels.dtype == np.uint16
    for channel in range(3):
        np.testing.assert_array_equal(photograph.pixels[..., channel], DEEP_GREY)
    if alpha:
        np.testing.assert_array_equal(photograph.alpha, DEEP_ALPHA)
    else:
        assert photograph.notes == ("greyscale shown as RGB",)


def test_a_transparent_level_or_colour_becomes_alpha() -> None:
    clear = Chunk(b"tRNS", struct.pack(">H", DEEP_GREY[2, 3]))
    photograph = opened(with_chunks(encoded(DEEP_GREY), clear))
    np.testing.assert_array_equal(photograph.alpha == 0, np.equal(DEEP_GREY, DEEP_GREY[2, 3]))
    clear = Chunk(b"tRNS", struct.pack(">3H", *DEEP[2, 3]))
    photograph = opened(with_chunks(encode_png(DEEP), clear))
    np.testing.assert_array_equal(photograph.alpha == 0, np.equal(DEEP, DEEP[2, 3]).all(axis=2))
    photograph = opened(encoded(RGB, transparency=tuple(int(v) for v in RGB[2, 3])))
    np.testing.assert_array_equal(photograph.alpha == 0, np.equal(RGB, RGB[2, 3]).all(axis=2))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_level_of_few_bits_becomes_alpha(bits: int) -> None:
    """Pillow brings the levels to 8 bits, and leaves what it says of the transparent one as it was."""
    levels = np.random.default_rng(2).integers(0, 2**bits, (4, 8)).astype(np.uint8)
    rows = np.unpackbits(levels[..., None], axis=2)[..., 8 - bits :].reshape(4, -1)
    packed = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    head = struct.pack(">2I5B", 8, 4, bits, 0, 0, 0, 0)
    clear = struct.pack(">H", int(levels[1, 2]))
    stream = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in
        ((b"IHDR", head), (b"tRNS", clear), (b"IDAT", zlib.compress(packed)), (b"IEND", b""))
    )  # fmt: skip
    photograph = opened(stream)
    np.testing.assert_array_equal(photograph.alpha == 0, levels == levels[1, 2])
    np.testing.assert_array_equal(photograph.pixels[..., 0], levels * (255 // (2**bits - 1)))


def plain_tiff(data: bytes, size: tuple[int, int], tags: dict[int, tuple[int, ...]]) -> bytes:
    """An uncompressed TIFF of a size (height, width); tags beside those that every one has."""
    tags = {256: size[1:], 257: size[:1], 259: (1,), 273: (8,), 278: size[:1], 279: (len(data),), **tags}
    entries, tables, at = [], b"", 8 + len(data)
    for tag in sorted(tags):
        packed = struct.pack(f"<{len(tags[tag])}I", *tags[tag])
        place = packed if len(packed) == 4 else struct.pack("<I", at + len(tables))
        tables += packed if len(packed) > 4 else b""
        entries.append(struct.pack("<HHI", tag, 4, len(tags[tag])) + place)
    head = struct.pack("<2sHI", b"II", 42, at + len(tables))
    return head + data + tables + struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)


def test_deep_grey_of_a_tiff_is_on_its_own_scale() -> None:
    """Pillow hands on 0 as black where it is white, and 12 bits as if they were the low ones of 16."""
    negative = plain_tiff(DEEP_GREY.tobytes(), (5, 7), {258: (16,), 262: (0,), 277: (1,)})
    np.testing.assert_array_equal(opened(negative).pixels[..., 0], 65535 - DEEP_GREY)
    packed = bytes.fromhex("fff000800400")  # 4095 and 0, 2048 and 1024
    twelve = plain_tiff(packed, (2, 2), {258: (12,), 262: (1,), 277: (1,)})
    np.testing.assert_array_equal(opened(twelve).pixels[..., 0], [[65535, 0], [32776, 16388]])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_planes_of_a_tiff_are_read_or_refused(dtype: Any) -> None:
    """Of deep ones Pillow and OpenCV make noise."""
    picture = (RGB if dtype == np.uint8 else DEEP).transpose(2, 0, 1)
    plane = picture[0].nbytes
    places = {273: tuple(8 + i * plane for i in range(3)), 279: (plane,) * 3}
    kind = {258: (8 * picture.itemsize,) * 3, 262: (2,), 277: (3,), 284: (2,)}
    stream = plain_tiff(picture.tobytes(), (5, 7), places | kind)
    if dtype == np.uint8:
        np.testing.assert_array_equal(opened(stream).pixels, RGB)
        return
    with pytest.raises(InvalidInput, match=r"channel after channel in 16 bits.*interleaved"):
        opened(stream)


def palette(transparent: bool) -> bytes:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    return encoded(picture, transparency=1) if transparent else encoded(picture)


@pytest.mark.parametrize(
    ("source", "pixels", "alpha", "note"),
    [
        pytest.param(
            palette(False), [[10, 20, 30], [40, 50, 60]], None, "palette converted to RGB",
            id="palette",
        ),
        pytest.param(
            palette(True), [[10, 20, 30], [40, 50, 60]], [255, 0], "palette converted to RGB",
            id="palette-transparent",
        ),
        pytest.param(
            encoded(np.array([[False, True]])), [[0] * 3, [255] * 3], None,
            "greyscale shown as RGB", id="1-bit",
        ),
        pytest.param(
            encoded(np.array([[7, 9]], np.uint8)), [[7] * 3, [9] * 3], None,
            "greyscale shown as RGB", id="grey",
        ),
        pytest.param(
            encoded(np.array([[[7, 200], [9, 100]]], np.uint8)), [[7] * 3, [9] * 3], [200, 100],
            "greyscale shown as RGB", id="grey-alpha",
        ),
        pytest.param(
            Image.new("CMYK", (2, 1), (255, 0, 0, 0)), [[0, 255, 255]] * 2, None,
            "CMYK converted to RGB (it has no CMYK profile)", id="cmyk",
        ),
        pytest.param(
            Image.new("HSV", (2, 1), (0, 255, 255)), [[255, 0, 0]] * 2, None,
            "HSV converted to RGB", id="hsv",
        ),
    ],
)  # fmt: skip
def test_other_modes_become_rgb_with_a_note(
    source: Any, pixels: list[list[int]], alpha: list[int] | None, note: str
) -> None:
    photograph = opened(source)
    np.testing.assert_array_equal(photograph.pixels, [pixels])
    assert photograph.notes == (note,)
    if alpha is None:
        assert photograph.alpha is None
    else:
        np.testing.assert_array_equal(photograph.alpha, [alpha])


def test_32_bit_grey_is_16_bit_grey_or_refused() -> None:
    levels = DEEP_GREY.astype(np.int32)
    np.testing.assert_array_equal(opened(Image.fromarray(levels)).pixels[..., 2], DEEP_GREY)
    with pytest.raises(InvalidInput, match="beyond 16 bits"):
        opened(Image.fromarray(levels + 65536))


def test_arrays_and_pil_images_are_copied() -> None:
    for source in (RGB.copy(), np.dstack([RGB, ALPHA])):
        photograph = opened(source)
        source[:] = 0
        np.testing.assert_array_equal(photograph.pixels, RGB)
    picture = Image.fromarray(RGB)
    opened(picture).pixels[:] = 0
    np.testing.assert_array_equal(np.asarray(picture), RGB)
    assert opened(DEEP).pixels.dtype == np.uint16
    assert opened(GREY).notes == ("greyscale shown as RGB",)


def test_only_the_first_of_several_pictures_is_used() -> None:
    pictures = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in (10, 200)]
    photograph = opened(encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:]))
    assert (photograph.pixels == 10).all()
    assert "several pictures in the file: the first is used" in photograph.notes


def test_16_bits_that_pillow_has_cut_already_are_noted(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(encode_png(DEEP))
    with Image.open(tmp_path / "deep.png") as picture:
        assert opened(picture).notes == ("16 bits read as 8",)


# --- EXIF orientation ---

UPRIGHT = {  # how the rows abc, def are shown, from the EXIF standard's table
    1: ["abc", "def"],
    2: ["cba", "fed"],
    3: ["fed", "cba"],
    4: ["def", "abc"],
    5: ["ad", "be", "cf"],
    6: ["da", "eb", "fc"],
    7: ["fc", "eb", "da"],
    8: ["cf", "be", "ad"],
}


def letters(rows: list[str], dtype: Any) -> np.ndarray:
    """Make one pixel per letter, each with its own colour and alpha."""
    levels = np.array([[ord(letter) for letter in row] for row in rows])
    return np.stack([levels, levels + 10, levels + 20, levels + 100], axis=-1).astype(dtype)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def turned_png(orientation: int, dtype: Any) -> bytes:
    array = letters(UPRIGHT[1], dtype)
    chunk = Chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    return with_chunks(encode_png(array[..., :3], alpha=array[..., 3].copy()), chunk)


def turned_tiff(orientation: int, dtype: Any) -> bytes:
    array = letters(UPRIGHT[1], dtype)
    kind = {258: (array.itemsize * 8,) * 4, 262: (2,), 274: (orientation,), 277: (4,), 338: (2,)}
    return plain_tiff(array.tobytes(), array.shape[:2], kind)


def turned_grey_tiff(orientation: int, dtype: Any) -> bytes:
    array = letters(UPRIGHT[1], dtype)[..., 0]
    kind = {258: (array.itemsize * 8,), 262: (1,), 274: (orientation,), 277: (1,)}
    return plain_tiff(array.tobytes(), array.shape, kind)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("make", [turned_png, turned_tiff, turned_grey_tiff])
@pytest.mark.parametrize("given", ["bytes", "path", "picture"])
def test_exif_orientation_is_applied_once(
    tmp_path: Path, make: Callable[[int, Any], bytes], dtype: Any, orientation: int, given: str
) -> None:
    """Pillow maps raw pixels of a file that it has opened by name, of a turned TIFF at the wrong size."""
    stream, path = make(orientation, dtype), tmp_path / "turned"
    path.write_bytes(stream)
    if given == "picture":
        with Image.open(path) as picture:
            photograph = opened(picture)
            assert picture.filename == str(path), "the caller's picture is as it was"
    else:
        photograph = opened(stream if given == "bytes" else path)
    expected = letters(UPRIGHT[orientation], dtype)
    if make is turned_grey_tiff:
        np.testing.assert_array_equal(photograph.pixels, np.repeat(expected[..., :1], 3, axis=2))
        return
    if given == "picture" and dtype == np.uint16:
        expected = (expected >> 8).astype(np.uint8)  # what Pillow makes of 16-bit colour
    assert photograph.pixels.dtype == expected.dtype
    np.testing.assert_array_equal(photograph.pixels, expected[..., :3])
    np.testing.assert_array_equal(photograph.alpha, expected[..., 3])
    notes = ("16 bits read as 8",) if dtype != expected.dtype else ()
    if orientation > 1:
        notes = (*notes, f"EXIF orientation {orientation} applied")
    assert photograph.notes == notes


def test_exif_orientation_of_a_jpeg_and_of_a_mask() -> None:
    jpeg = encoded(np.zeros((20, 30, 3), np.uint8), "JPEG", exif=exif(6))
    assert opened(jpeg).size == (30, 20)
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert opened(picture).size == (30, 20)
    mask = read_mask(turned_png(8, np.uint8), mode="alpha", max_pixels=LIMIT)
    np.testing.assert_array_equal(mask.values * 255, letters(UPRIGHT[8], np.uint8)[..., 3])
    assert "EXIF orientation 8 applied" in mask.note


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_out_of_range_counts_as_upright(orientation: int) -> None:
    assert opened(turned_png(orientation, np.uint8)).notes == ()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_stop_reading() -> None:
    jpeg = encoded(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert opened(jpeg).size == (5, 7)


# --- bad input ---


def rewritten(stream: bytes, change: Callable[[bytearray], object]) -> bytes:
    """Change bytes of the header of a PNG and mend its checksum."""
    data = bytearray(stream)
    change(data)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, whatever its data hold."""
    return rewritten(
        encoded(RGB),
        lambda data: data.__setitem__(slice(16, 24), struct.pack(">II", width, height)),
    )


NOISE = np.random.default_rng(2).integers(0, 256, (64, 64, 3)).astype(np.uint8)
BAD_FILES = {
    "text": (b"this is not a picture\n" * 9, "not a picture that can be read"),
    "empty": (b"", "is empty"),
    "truncated-jpeg": (encoded(NOISE, "JPEG")[:2000], "cut short"),
    "truncated-png": (encoded(NOISE)[:2000], "cut short"),
    "truncated-webp": (encoded(NOISE, "WEBP", lossless=True)[:2000], "cut short|not a picture"),
    "truncated-deep-png": (encode_png(np.uint16(NOISE) * 257)[:2000], "cut short"),
    "header-only": (encoded(NOISE)[:20], "cut short|not a picture"),
    "zero-width": (claiming(0, 5), "has no pixels|not a picture"),
    "bomb": (claiming(50_000, 40_000), "50000x40000 = 2000000000 pixels.*10000.*--max-pixels"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
}


@pytest.mark.parametrize("read", [open_photograph, read_mask])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, read: Any, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    for source in (path, str(path), content):
        with pytest.raises(InvalidInput, match=message) as caught:
            read(source, max_pixels=LIMIT)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value) or source is content


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"image .*nowhere\.png does not exist"):
        opened(tmp_path / "nowhere.png")
    with pytest.raises(InvalidInput, match=r"mask .* is a folder"):
        read_mask(tmp_path, max_pixels=LIMIT)
    with pytest.raises(InvalidInput):
        opened("a\0b")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "no pixels: its size is 5x0"),
        (Image.new("RGB", (0, 5)), "no pixels: its size is 0x5"),
        (np.zeros((101, 100, 3), np.uint8), r"100x101 = 10100 pixels.*--max-pixels"),
        (Image.new("L", (100, 101)), r"100x101 = 10100 pixels.*--max-pixels"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((5, 5, 3), np.int64), "int64"),
        (np.zeros((5, 5, 3), np.float32), r"float32, expected uint8"),
        (np.zeros((5, 5), bool), "bool"),
        (Image.new("F", (5, 5)), "float32"),
        (torch.zeros(3, 5, 5), "got Tensor"),
        (None, "got NoneType"),
    ],
)
def test_unusable_objects_are_refused(source: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        opened(source)


def test_the_limit_of_pixels_is_inclusive_and_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("PNG", "TIFF"):
        stream = encoded(np.zeros((100, 100), np.uint8), kind)
        assert opened(stream).size == (100, 100)
        with pytest.raises(InvalidInput, match="limit of 9999"):
            open_photograph(stream, max_pixels=9999)
    assert Image.MAX_IMAGE_PIXELS == 10
