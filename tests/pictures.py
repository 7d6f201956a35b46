"""Pictures whose every number is known, and files of them."""

import io
from typing import Any

import numpy as np
from PIL import Image

from bld.images import Photograph, open_photograph
from bld.png import Chunk, insert_chunks

LIMIT = 10_000  # px, many more than these have
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
GREY, DEEP_GREY = RGB[..., 0], DEEP[..., 0]
ALPHA, DEEP_ALPHA = RGB[..., 1], DEEP[..., 1]


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """Encode a picture with Pillow."""
    stream = io.BytesIO()
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(stream, kind, **options)
    return stream.getvalue()


def with_chunks(stream: bytes, *chunks: Chunk) -> bytes:
    return insert_chunks(stream, list(chunks))


def opened(source: Any) -> Photograph:
    return open_photograph(source, max_pixels=LIMIT)
