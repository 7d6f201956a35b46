"""PNG files: what is saved comes back, whole or not at all."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms, PngImagePlugin

from bld.errors import InvalidInput
from bld.images import (
    Photograph,
    read_text_chunks,
    save_png,
    write_text_atomic,
)
from bld.png import Chunk, encode_png, read_chunks, read_text
from tests.pictures import ALPHA, DEEP, DEEP_ALPHA, DEEP_GREY, GREY, RGB, encoded, opened, with_chunks

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# --- saving ---

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
KEYWORD = st.text("abcdefghijklmnopqrstuvwxyz:_", min_size=1, max_size=79)
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)


@given(
    data=st.data(),
    shape=SHAPES,
    dtype=st.sampled_from([np.uint8, np.uint16]),
    has_alpha=st.booleans(),
    profile=st.sampled_from([None, PROFILE]),
    text=st.dictionaries(KEYWORD, TEXT, max_size=3),
)
def test_a_png_comes_back_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    shape: tuple[int, int],
    dtype: Any,
    has_alpha: bool,
    profile: bytes | None,
    text: dict[str, str],
) -> None:
    pixels = data.draw(arrays.arrays(dtype, (*shape, 3)))
    alpha = data.draw(arrays.arrays(dtype, shape)) if has_alpha else None
    path = tmp_path_factory.mktemp("png") / "saved.png"
    save_png(path, Photograph(pixels, alpha, profile), text=text)
    photograph = opened(path)
    assert photograph.pixels.dtype == dtype
    np.testing.assert_array_equal(photograph.pixels, pixels)
    assert (photograph.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(photograph.alpha, alpha)
    assert photograph.icc_profile == profile
    assert photograph.notes == ()
    assert read_text_chunks(path) == text
    with Image.open(path) as picture:  # and as everybody else sees it
        assert picture.text == text
        assert picture.info.get("icc_profile") == profile
    before = path.read_bytes()
    save_png(path, pixels, alpha=alpha, icc_profile=profile, text=text)
    assert path.read_bytes() == before


def test_grey_is_saved_as_grey(tmp_path: Path) -> None:
    for grey in (GREY, DEEP_GREY):
        save_png(tmp_path / "grey.png", grey)
        with Image.open(tmp_path / "grey.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), grey)


@pytest.mark.parametrize(
    ("pixels", "alpha", "text"),
    [
        (RGB.astype(np.float32), None, {}),
        (RGB[..., :2], None, {}),
        (RGB, DEEP_ALPHA, {}),
        (RGB, ALPHA[:2], {}),
        (GREY, ALPHA, {}),
        (RGB, None, {"": "x"}),
        (RGB, None, {"a" * 80: "x"}),
        (RGB, None, {"key": "a\0b"}),
    ],
)
def test_what_no_png_holds_is_refused(
    tmp_path: Path, pixels: np.ndarray, alpha: np.ndarray | None, text: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        save_png(tmp_path / "never.png", pixels, alpha=alpha, text=text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, OSError(28, "disk full")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    path = tmp_path / "kept.txt"
    write_text_atomic(path, "old: ä")

    def fail(_: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((KeyboardInterrupt, RuntimeError, InvalidInput)):
        write_text_atomic(path, "new")
    with pytest.raises((KeyboardInterrupt, RuntimeError, InvalidInput)):
        save_png(tmp_path / "new.png", RGB)
    assert path.read_text("utf-8") == "old: ä"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "nowhere" / "a.png", tmp_path / "file" / "a.png", tmp_path):
        with pytest.raises(InvalidInput, match=r"cannot write .*choose another place"):
            save_png(place, RGB)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- streams and their text ---


def test_text_of_every_kind_is_read() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("plain", "a")
    info.add_text("packed", "b" * 99, zip=True)
    info.add_itxt("international", "ç", "fr", "clé")
    info.add_itxt("both", "ü" * 99, zip=True)
    expected = {"plain": "a", "packed": "b" * 99, "international": "ç", "both": "ü" * 99}
    assert read_text(encoded(RGB, pnginfo=info)) == expected


def test_files_without_text_give_none(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (encoded(RGB), encoded(RGB, "JPEG"), b"text", b""):
        path.write_bytes(content)
        assert read_text_chunks(path) == {}


def test_damaged_text_is_refused(tmp_path: Path) -> None:
    path, stream = tmp_path / "a.png", encode_png(RGB, text={"prompt": "a guitar"})
    huge = Chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26 + 1), 9))
    unpackable = Chunk(b"zTXt", b"k\0\0not zlib")
    for content in (
        stream[:60],
        stream[:-4],
        stream.replace(b"guitar", b"Guitar"),
        with_chunks(stream, huge),
        with_chunks(stream, unpackable),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=r"a\.png is a damaged PNG"):
            read_text_chunks(path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_text_chunks(tmp_path / "nowhere.png")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_text_chunks(tmp_path)


def test_chunks_stand_behind_the_header_and_in_order() -> None:
    kinds = [c.kind for c in read_chunks(encode_png(DEEP, icc_profile=PROFILE, text={"b": "", "a": ""}))]
    assert kinds[:4] == [b"IHDR", b"iCCP", b"iTXt", b"iTXt"]
    assert set(kinds[4:-1]) == {b"IDAT"}
    assert kinds[-1] == b"IEND"
