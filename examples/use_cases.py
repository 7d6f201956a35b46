"""The paper's use cases, each a few lines on a photograph from scikit-image.

    python examples/use_cases.py                 # all of them, into outputs/use-cases
    python examples/use_cases.py replace session # some

Every case writes one contact sheet. Pictures are small so that the bundled model keeps up on two cores.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from skimage import data

from bld import Editor, EditResult, Session
from bld.images import Photograph

SIDE = 256  # px, of every photograph here
Array = np.ndarray[Any, Any]
Sheet = list[tuple[str, Array]]


def photograph(name: str) -> Array:
    """A square of one of scikit-image's photographs: SIDE SIDE 3, uint8."""
    picture = getattr(data, name)()
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = picture[top : top + side, left : left + side]
    return np.asarray(cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def ellipse(top: int, left: int, bottom: int, right: int) -> Array:
    """A mask of SIDE SIDE, uint8: white within the box's ellipse."""
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).ellipse((left, top, right, bottom), fill=255)
    return np.asarray(mask)


def shown(photo: Array, mask: Array, result: EditResult, label: str) -> Sheet:
    """Photograph, mask and every candidate."""
    candidates = [(f"{label}, seed {c.seed}", c.photograph.pixels) for c in result.candidates]
    return [("photograph", photo), ("mask", np.repeat(mask[..., None], 3, 2)), *candidates]


def add(editor: Editor, **options: Any) -> Sheet:
    """Add an object: a mask on free ground."""
    photo, mask = photograph("coffee"), ellipse(172, 162, 252, 242)
    return shown(photo, mask, editor.edit(photo, mask, "a red apple", **options), "a red apple")


def replace(editor: Editor, **options: Any) -> Sheet:
    """Replace an object: the mask covers it."""
    photo, mask = photograph("coffee"), ellipse(4, 40, 168, 196)
    return shown(photo, mask, editor.edit(photo, mask, "a pizza", **options), "a pizza")


def remove(editor: Editor, **options: Any) -> Sheet:
    """Remove an object: ask for what is behind it. The bundled model knows "an empty scene"."""
    photo, mask = photograph("rocket"), ellipse(20, 95, 240, 165)
    return shown(photo, mask, editor.edit(photo, mask, "an empty scene", **options), "an empty scene")


def alter(editor: Editor, **options: Any) -> Sheet:
    """Alter an object: start later, so that its pose and light stay."""
    photo, mask = photograph("chelsea"), ellipse(20, 40, 220, 230)
    return shown(photo, mask, editor.edit(photo, mask, "a tiger", strength=0.6, **options), "a tiger, 0.6")


def background(editor: Editor, **options: Any) -> Sheet:
    """Replace the background: the same mask, inverted."""
    photo, mask = photograph("chelsea"), ellipse(10, 30, 250, 240)
    result = editor.edit(photo, mask, "an empty scene", invert_mask=True, **options)
    return shown(photo, 255 - mask, result, "background")


def scribble(editor: Editor, **options: Any) -> Sheet:
    """Guide by a scribble: it is painted into the photograph, and the strength says how far to leave it."""
    photo, mask = photograph("coffee"), ellipse(125, 5, 250, 130)
    painted = Image.fromarray(photo)
    ImageDraw.Draw(painted).ellipse((30, 150, 105, 230), fill=(200, 30, 40))
    ImageDraw.Draw(painted).line((68, 155, 80, 135), fill=(60, 130, 40), width=6)
    scribbled = np.asarray(painted)
    sheet = [("photograph", photo), ("scribble", scribbled)]
    for strength in (0.4, 0.6, 0.8, 1.0):
        result = editor.edit(
            scribbled, mask, "a red apple", strength=strength, **{**options, "candidates": 1}
        )
        sheet.append((f"strength {strength}", result.best.photograph.pixels))
    return sheet


def text(editor: Editor, **options: Any) -> Sheet:
    """Text on a sign. Whether letters come out is up to the model: the bundled one knows no letters."""
    photo = photograph("astronaut")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[150:235, 70:190] = 255
    return shown(photo, mask, editor.edit(photo, mask, 'a sign "OK"', **options), "a sign")


def many(editor: Editor, **options: Any) -> Sheet:
    """Many candidates of one edit; the ranker puts the best first."""
    photo, mask = photograph("coffee"), ellipse(172, 162, 252, 242)
    return shown(photo, mask, editor.edit(photo, mask, "a lemon", **{**options, "candidates": 8}), "a lemon")


def session(editor: Editor, **options: Any) -> Sheet:
    """One edit after the other, an undo and a second branch; the rest of the photograph stays."""
    editing = Session(Photograph(photograph("coffee")))
    sheet = [("photograph", editing.photograph.pixels)]
    steps = (("a lemon", ellipse(150, 5, 250, 105)), ("a cookie", ellipse(5, 5, 95, 95)))
    for prompt, mask in steps:
        editing.edit(editor, mask, prompt, **options)
        sheet.append((prompt, editing.photograph.pixels))
    editing.undo()
    editing.edit(editor, ellipse(5, 150, 105, 250), "a heart", **options)
    sheet.append(("undone, a heart", editing.photograph.pixels))
    return sheet


CASES: dict[str, Callable[..., Sheet]] = {
    case.__name__: case for case in (add, replace, remove, alter, background, scribble, text, many, session)
}


def contact_sheet(tiles: Sheet) -> Image.Image:
    """The pictures side by side with their labels."""
    sheet = Image.new("RGB", (len(tiles) * (SIDE + 4) - 4, SIDE + 16), "white")
    for i, (label, pixels) in enumerate(tiles):
        sheet.paste(Image.fromarray(pixels), (i * (SIDE + 4), 0))
        ImageDraw.Draw(sheet).text((i * (SIDE + 4) + 2, SIDE + 2), label, fill="black")
    return sheet


def main() -> None:
    """Run the cases named on the command line, or all of them."""
    output = Path("outputs/use-cases")
    output.mkdir(parents=True, exist_ok=True)
    editor = Editor.from_pretrained("mini")
    for name in sys.argv[1:] or CASES:
        contact_sheet(CASES[name](editor, candidates=3, seed=0)).save(output / f"{name}.png")
        print(output / f"{name}.png", flush=True)


if __name__ == "__main__":
    main()
