"""Colour profiles: kept, dropped, applied, on profiles that are made here."""

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from bld.apps.contact import fitted
from bld.images import Photograph, from_srgb, to_pil, to_srgb
from bld.png import encode_png
from tests.pictures import DEEP, GREY, RGB, encoded, opened


def icc(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """Lay out an ICC version 2 profile."""
    tags = {b"desc": b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(79), **tags}
    start, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(data), b"test", 0x02100000, kind, space, pcs)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)  # the D50 white of the connection space
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))


def gamma(value: float) -> bytes:
    return b"curv" + struct.pack(">IIH", 0, 1, round(value * 256))


WHITE = {b"wtpt": xyz(0.9642, 1, 0.8249)}
WIDE = icc(  # Display P3 primaries with a plain gamma
    b"RGB ",
    WHITE
    | {b"rXYZ": xyz(0.5151, 0.2412, -0.0011), b"gXYZ": xyz(0.2920, 0.6922, 0.0419)}
    | {b"bXYZ": xyz(0.1571, 0.0666, 0.7841)}
    | {name: gamma(2.2) for name in (b"rTRC", b"gTRC", b"bTRC")},
)
GREY_PROFILE = icc(b"GRAY", WHITE | {b"kTRC": gamma(1.8)})
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cmyk_profile() -> bytes:
    """A press that prints everything as one of two flat colours: unlike any plain formula."""
    corners = [(128, 128, 128) if ink & 8 else (240, 100, 200) for ink in range(16)]  # Lab, 8 bits
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4
    lut += bytes(value for corner in corners for value in corner) + ramp * 3
    return icc(b"CMYK", WHITE | {b"A2B0": lut, b"B2A0": lut}, kind=b"prtr", pcs=b"Lab ")


CMYK_PROFILE = cmyk_profile()


# --- photographs that carry one ---


@pytest.mark.parametrize("deep", [False, True])
def test_an_rgb_profile_is_kept(deep: bool) -> None:
    photograph = opened(encode_png(DEEP if deep else RGB, icc_profile=WIDE))
    assert photograph.icc_profile == WIDE
    assert photograph.notes == ()


def test_a_grey_profile_is_dropped_with_a_note() -> None:
    photograph = opened(encoded(GREY, icc_profile=GREY_PROFILE))
    assert photograph.icc_profile is None
    assert "ICC profile dropped: it describes GRAY, the result is RGB" in photograph.notes
    np.testing.assert_array_equal(photograph.pixels[..., 0], GREY)


def test_cmyk_goes_through_its_profile() -> None:
    black_ink = Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    photograph = opened(encoded(black_ink, "JPEG", quality=100, icc_profile=CMYK_PROFILE))
    assert photograph.icc_profile is None
    assert photograph.notes == ("CMYK converted to RGB through its ICC profile",)
    plain = opened(encoded(black_ink, "JPEG", quality=100))
    assert plain.notes == ("CMYK converted to RGB (it has no CMYK profile)",)
    # This press prints black ink alone as light pink; without a profile it is black.
    assert photograph.pixels.mean() > 100
    assert plain.pixels.max() < 5


def test_an_unreadable_profile_is_kept_and_taken_as_srgb() -> None:
    broken = WIDE[:150]
    photograph = opened(encoded(RGB, icc_profile=broken))
    assert photograph.icc_profile == broken
    assert photograph.notes == ("ICC profile kept but not readable: colours are edited as if sRGB",)
    np.testing.assert_array_equal(to_srgb(RGB, broken), to_srgb(RGB, None))
    np.testing.assert_array_equal(from_srgb(to_srgb(RGB, broken), broken, np.uint8), RGB)


@pytest.mark.parametrize("profile", [None, SRGB], ids=["none", "srgb"])
@pytest.mark.parametrize("pixels", [RGB, DEEP], ids=["8", "16"])
def test_srgb_goes_there_and_back_exactly(profile: bytes | None, pixels: np.ndarray) -> None:
    rgb = to_srgb(pixels, profile)
    assert rgb.dtype == np.float32
    np.testing.assert_allclose(rgb, pixels / np.iinfo(pixels.dtype).max, atol=1e-7)
    np.testing.assert_array_equal(from_srgb(rgb, profile, pixels.dtype), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_wide_profile_is_converted_both_ways(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    # By hand: linear light through the primaries above and the sRGB curve.
    colour = np.array([0.5, 0.25, 0.4])
    p3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
    srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    light = np.linalg.solve(srgb, p3 @ colour**2.2)
    expected = 1.055 * light ** (1 / 2.4) - 0.055
    pixels = np.full((3, 4, 3), np.rint(colour * top), dtype)
    rgb = to_srgb(pixels, WIDE)
    np.testing.assert_allclose(rgb[1, 2], expected, atol=1.5 / 255)
    back = from_srgb(rgb, WIDE, dtype)
    assert back.dtype == dtype
    np.testing.assert_allclose(back / top, pixels / top, atol=1.5 / 255)


def test_white_stays_white_in_16_bits() -> None:
    white = np.ones((2, 2, 3), np.float32)
    assert (from_srgb(white, WIDE, np.uint16) == 65535).all()


@pytest.mark.parametrize("alpha", [None, RGB[..., 0]], ids=["opaque", "alpha"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_contact_sheet_shows_srgb(mode: str, alpha: np.ndarray | None) -> None:
    pixels = np.full((5, 7, 3), (200, 60, 40), np.uint8)
    picture = to_pil(Photograph(pixels, alpha, WIDE)).convert(mode)
    shown = fitted(picture, 7)
    assert shown.mode == mode
    np.testing.assert_allclose(np.asarray(shown)[..., :3] / 255, to_srgb(pixels, WIDE), atol=1 / 255)
    if mode == "RGBA":
        np.testing.assert_array_equal(shown.getchannel("A"), picture.getchannel("A"))
