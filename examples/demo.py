"""The demo: edit a photograph from scikit-image with the bundled model, as a newcomer would.

    make demo

Saves the photograph, runs `bld edit` on it and says where the pictures are.
"""

import shlex
import sys
from pathlib import Path

from PIL import Image
from skimage import data

from bld.apps.cli import main as bld

MASK = Path(__file__).parent / "masks" / "coffee.png"
PROMPT = "a star"


def main() -> int:
    """Run the demo; the folder may be given as the only argument."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/demo")
    output.mkdir(parents=True, exist_ok=True)
    photograph = output / "photograph.png"
    Image.fromarray(data.coffee()).save(photograph)
    words = [
        "edit", "--image", photograph, "--mask", MASK, "--prompt", PROMPT, "--seed", 0,
        "--reconstruct", "poisson", "--output", output,
    ]  # fmt: skip
    sys.argv = ["bld", *map(str, words)]
    print(f"$ {shlex.join(sys.argv)}", flush=True)
    code = bld()
    if code == 0:
        print(f"\nYour words in a photograph: {output / 'result.png'}")
        print(f"All candidates beside it:    {output / 'grid.png'}")
        print(f"How it was made:             bld info {output / 'result.png'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
