"""The canvas: what the browser is given to paint on, and the mask and colours that come back.

A mask here is h w, uint8, 255 = edit. A photograph is painted on at its own size, or, where its longer side
is beyond LONGEST, on a smaller copy; the mask always has the photograph's size.
"""

import base64
import json
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from bld import masks
from bld.errors import InvalidInput
from bld.images import Photograph, from_srgb, open_photograph, to_srgb
from bld.masks import Size

Bytes = npt.NDArray[np.uint8]

LONGEST = 1536  # px: browsers get slow beyond it, and a brush is no finer than that
DISC = 7  # px, largest radius of a step of growing
HALF = 128  # an edited pixel, as `masks.binarise` has it
TINT = (255, 45, 120)  # what a mask is shown in: layers.js has the same
URL = "data:image/png;base64,"


@dataclass(frozen=True, eq=False)
class Painting:
    """What was painted, at the canvas' size.

    base: which mask of the server's it was painted on. mask: h w. colours: h w 4, the scribble, or None.
    """

    base: int
    mask: Bytes
    colours: Bytes | None


def canvas_size(size: Size) -> Size:
    """The size to paint at, of a photograph's (height, width)."""
    scale = min(1.0, LONGEST / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def reduced(photograph: Photograph, size: Size) -> Image.Image:
    """The photograph in sRGB at a smaller size, for a screen."""

    def scaled(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_AREA))

    rgb = to_srgb(scaled(photograph.pixels), photograph.icc_profile)
    channels = [np.rint(rgb * 255).astype(np.uint8)]
    if photograph.alpha is not None:
        top = np.iinfo(photograph.alpha.dtype).max
        channels.append(np.rint(scaled(photograph.alpha)[..., None] / top * 255).astype(np.uint8))
    return Image.fromarray(np.concatenate(channels, axis=2))


def data_url(picture: Image.Image, kind: str = "webp") -> str:
    """A picture as an address that holds it: nothing lies on the disk, and nobody else can ask for it."""
    stream = BytesIO()
    picture.save(stream, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def shown(mask: Bytes) -> Bytes:
    """A mask at the canvas' size."""
    height, width = canvas_size((mask.shape[0], mask.shape[1]))
    if (height, width) == mask.shape:
        return mask
    return np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA))


def mask_url(mask: Bytes) -> str:
    """A mask of the canvas' size as the canvas holds it: its alpha is the mask."""
    pixels = np.dstack([np.full((*mask.shape, 3), TINT, np.uint8), mask])
    return data_url(Image.fromarray(pixels), "png")


def read_painting(sent: str | None, size: Size) -> Painting:
    """What the canvas of a photograph of `size` sent. Raises InvalidInput for anything else."""
    at = canvas_size(size)
    try:
        parts = json.loads(sent or "")
        base = int(parts["base"])
        mask, colours = (_layer(parts[name], at) for name in ("mask", "colours"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput("the canvas sent no painting: load the page again") from error
    return Painting(base, np.zeros(at, np.uint8) if mask is None else mask[..., 3], colours)


def _layer(url: str, size: Size) -> Bytes | None:
    """One layer of the canvas, h w 4; None if nothing was painted on it."""
    if not url:
        return None
    if not url.startswith(URL):
        raise ValueError("not a PNG")
    layer = open_photograph(base64.b64decode(url[len(URL) :], validate=True), max_pixels=LONGEST**2)
    if layer.size != size or layer.pixels.dtype != np.uint8:
        raise ValueError("of another photograph")
    alpha = np.full(size, 255, np.uint8) if layer.alpha is None else layer.alpha
    return np.dstack([layer.pixels, alpha])


def merged(mask: Bytes, before: Bytes, painted: Bytes) -> Bytes:
    """A mask with what was painted over it.

    mask: at the photograph's size. before, painted: at the canvas' size, what was shown of it and what
    came back. Where these two agree the mask stays as it is, greys and details included; elsewhere a
    pixel that the brush covers by half or more is edited, and one that the eraser does is not.
    """
    changed = painted != before
    if not changed.any():
        return mask
    height, width = mask.shape
    strokes, touched = painted, changed
    if painted.shape != mask.shape:
        strokes = np.asarray(cv2.resize(painted, (width, height), interpolation=cv2.INTER_LINEAR))
        touched = cv2.resize(changed.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return np.where(touched, np.where(strokes >= HALF, np.uint8(255), np.uint8(0)), mask)


def inverted(mask: Bytes) -> Bytes:
    """Exchange edit and keep."""
    return np.uint8(255) - mask


def grown(mask: Bytes, pixels: int) -> Bytes:
    """Move a mask's edge outwards by so many pixels of the photograph; inwards if negative."""
    change = cv2.dilate if pixels > 0 else cv2.erode
    for radius in _discs(abs(pixels)):
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        # Beyond the border lies neither edit nor keep: a mask that reaches it stays there.
        mask = np.asarray(change(mask, disc))
    return mask


def _discs(radius: int) -> list[int]:
    """Radii that add up to one: small discs after one another cost far less than a large one."""
    return [DISC] * (radius // DISC) + ([radius % DISC] if radius % DISC else [])


def feathered(mask: Bytes, pixels: int) -> Bytes:
    """Soften a mask's edge inwards over so many pixels: no new pixel is edited."""
    soft = masks.feather_inside((mask / np.float32(255)).astype(np.float32), pixels)
    return np.where(mask > 0, np.maximum(np.rint(soft * 255), 1), 0).astype(np.uint8)


def scribbled(photograph: Photograph, mask: Bytes, colours: Bytes | None) -> Photograph:
    """The photograph with colours (h w 4, at the canvas' size) painted into it, within the mask only.

    Returns the photograph itself if there is no colour within the mask.
    """
    if colours is None or not colours[..., 3].any():
        return photograph
    height, width = photograph.size
    # Premultiplied, or the colour of what was not painted would bleed into the edges.
    layer = colours.astype(np.float32) / 255
    layer[..., :3] *= layer[..., 3:]
    layer = np.asarray(cv2.resize(layer, (width, height), interpolation=cv2.INTER_LINEAR))
    painted = (layer[..., 3] > 0) & (mask >= HALF)
    if not painted.any():
        return photograph
    rows, columns = (np.flatnonzero(painted.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    opacity = layer[box][..., 3:]
    under = to_srgb(photograph.pixels[box], photograph.icc_profile)
    mixed = np.clip(layer[box][..., :3] + under * (1 - opacity), 0, 1).astype(np.float32)
    pixels = photograph.pixels.copy()
    pixels[box][painted[box]] = from_srgb(mixed, photograph.icc_profile, pixels.dtype)[painted[box]]
    notes = (*photograph.notes, "a scribble was painted into it")
    return Photograph(pixels, photograph.alpha, photograph.icc_profile, notes)
