"""Contact sheets: labelled pictures in rows."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from bld.images import to_srgb

GAP, LINE = 4, 16  # px: between tiles, height of a label

Tile = tuple[str, Image.Image]


def contact_sheet(rows: Sequence[Sequence[Tile]]) -> Image.Image:
    """Rows of (label, picture) on white, every place as large as the largest picture."""
    pictures = [picture for row in rows for _, picture in row]
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    step = (width + GAP, height + LINE + GAP)
    sheet = Image.new("RGB", (GAP + max(map(len, rows)) * step[0], GAP + len(rows) * step[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            corner = (GAP + x * step[0], GAP + y * step[1])
            sheet.paste(picture, corner, picture if picture.mode == "RGBA" else None)
            draw.text((corner[0], corner[1] + height + 1), label, fill="black")
    return sheet


def fitted(picture: Image.Image, longest: int) -> Image.Image:
    """The picture, RGB or RGBA, in sRGB, scaled so that its longer side is `longest`."""
    scale = longest / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    small = picture.resize((width, height), Image.Resampling.LANCZOS)
    rgb = to_srgb(np.asarray(small)[..., :3], small.info.get("icc_profile"))
    shown = Image.fromarray(np.rint(rgb * 255).astype(np.uint8))
    if small.mode == "RGBA":
        shown.putalpha(small.getchannel("A"))
    return shown
