"""Draw the masks that the demo uses: `python examples/draw_masks.py`."""

from pathlib import Path

from PIL import Image, ImageDraw

MASKS = Path(__file__).parent / "masks"

# name: (size of the photograph, the box of the ellipse to edit as left, top, right, bottom)
SHAPES = {
    "coffee": ((600, 400), (450, 28, 582, 160)),
}


def main() -> None:
    """Write every mask into examples/masks."""
    MASKS.mkdir(exist_ok=True)
    for name, (size, box) in SHAPES.items():
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        mask.save(MASKS / f"{name}.png")


if __name__ == "__main__":
    main()
