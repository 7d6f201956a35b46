"""PNG byte streams: 8 and 16 bits, with an ICC profile and text, the same bytes for the same input.

Pillow cannot write 16-bit colour and OpenCV can write neither profiles nor text. So OpenCV encodes
the pixels, and the chunks that carry the rest are inserted here, behind the header.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 2**26  # of one text chunk when unpacked: a small file cannot fill the memory
_COMPRESSION = 4  # zlib level: a tenth larger than level 6 on photographs, in a third of the time


class Chunk(NamedTuple):
    """One chunk of a PNG: its four-letter kind and its data, without length and checksum."""

    kind: bytes
    data: bytes

    def to_bytes(self) -> bytes:
        """Serialise the chunk, as the file holds it."""
        body = self.kind + self.data
        return struct.pack(">I", len(self.data)) + body + struct.pack(">I", zlib.crc32(body))


def encode_png(
    pixels: npt.NDArray[Any],
    *,
    alpha: npt.NDArray[Any] | None = None,
    icc_profile: bytes | None = None,
    text: Mapping[str, str] | None = None,
) -> bytes:
    """Encode a picture as PNG.

    `pixels` is h w 3 (colour) or h w (grey), uint8 or uint16; `alpha` is h w of the same dtype and
    goes with colour only. `text` becomes UTF-8 chunks in the mapping's order. Raises ValueError for
    other shapes or dtypes and for text that a PNG cannot hold.
    """
    head = [] if icc_profile is None else [_icc_chunk(icc_profile)]
    head += [_text_chunk(keyword, value) for keyword, value in (text or {}).items()]
    done, stream = cv2.imencode(
        ".png", _in_opencv_order(pixels, alpha), [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION]
    )
    if not done:
        raise ValueError(f"OpenCV cannot encode {pixels.dtype} pixels of shape {pixels.shape}")
    return insert_chunks(stream.tobytes(), head)


def insert_chunks(stream: bytes, chunks: list[Chunk]) -> bytes:
    """Put chunks right behind the header, where profiles and text may stand."""
    behind_header = len(SIGNATURE) + 12 + 13  # IHDR: 12 bytes of frame around 13 of data
    added = b"".join(chunk.to_bytes() for chunk in chunks)
    return stream[:behind_header] + added + stream[behind_header:]


def read_chunks(stream: bytes) -> Iterator[Chunk]:
    """Walk over the chunks of a PNG. Raises ValueError if it is cut short or damaged."""
    if not stream.startswith(SIGNATURE):
        raise ValueError("no PNG signature")
    position, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        if position + 12 > len(stream):
            raise ValueError("cut short")
        length, kind = struct.unpack_from(">I4s", stream, position)
        end = position + 12 + length
        chunk = Chunk(kind, stream[position + 8 : end - 4])
        if stream[position:end] != chunk.to_bytes():
            raise ValueError(f"chunk {kind!r} is cut short or damaged")
        yield chunk
        position = end


def read_text(stream: bytes) -> dict[str, str]:
    """Read all text chunks (tEXt, zTXt, iTXt) of a PNG. Raises ValueError if it is damaged."""
    readers = {b"tEXt": _plain_text, b"zTXt": _packed_text, b"iTXt": _international_text}
    texts = (chunk for chunk in read_chunks(stream) if chunk.kind in readers)
    return dict(readers[chunk.kind](chunk.data) for chunk in texts)


def _in_opencv_order(pixels: npt.NDArray[Any], alpha: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    """Lay out as h w, h w BGR or h w BGRA, contiguous."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"PNG holds uint8 or uint16, not {pixels.dtype}")
    if pixels.ndim == 2 and alpha is None:
        return np.ascontiguousarray(pixels)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected pixels h w 3 (or h w without alpha), got {pixels.shape}")
    if alpha is None:
        return np.ascontiguousarray(pixels[..., ::-1])
    if alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype:
        raise ValueError(f"alpha is {alpha.dtype} {alpha.shape}, pixels are {pixels.dtype} {pixels.shape}")
    return np.dstack([pixels[..., ::-1], alpha])


def _icc_chunk(profile: bytes) -> Chunk:
    return Chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile, 9))


def _text_chunk(keyword: str, value: str) -> Chunk:
    """Make an iTXt chunk: keyword, not packed, no language, no translated keyword, UTF-8 text."""
    if not 1 <= len(keyword) <= 79 or not keyword.isascii() or not keyword.isprintable():
        raise ValueError(f"a PNG keyword is 1 to 79 printable ASCII letters, got {keyword!r}")
    if "\0" in value:
        raise ValueError(f"the text of {keyword!r} holds a NUL character, which a PNG cannot keep")
    return Chunk(b"iTXt", keyword.encode("ascii") + b"\0\0\0\0\0" + value.encode("utf-8"))


def _plain_text(data: bytes) -> tuple[str, str]:
    keyword, _, value = data.partition(b"\0")
    return keyword.decode("latin-1"), value.decode("latin-1")


def _packed_text(data: bytes) -> tuple[str, str]:
    keyword, _, rest = data.partition(b"\0")
    return keyword.decode("latin-1"), _unpack(rest[1:]).decode("latin-1")


def _international_text(data: bytes) -> tuple[str, str]:
    keyword, _, rest = data.partition(b"\0")
    packed, rest = rest[:1] == b"\1", rest[2:]
    _language, _, rest = rest.partition(b"\0")
    _translated, _, value = rest.partition(b"\0")
    return keyword.decode("latin-1"), (_unpack(value) if packed else value).decode("utf-8")


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        value = unpacker.decompress(data, MAX_TEXT_BYTES)
    except zlib.error as error:
        raise ValueError(f"packed text is damaged ({error})") from error
    if unpacker.unconsumed_tail:
        raise ValueError(f"packed text is larger than {MAX_TEXT_BYTES} bytes")
    return value
