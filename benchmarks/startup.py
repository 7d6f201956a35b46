"""How long it takes until something happens: `python benchmarks/startup.py [--model mini] [--repeats 5]`.

A new process for each: the help text; importing torch and diffusers; diffusers loading its own pipeline from
the model's folder; and a whole edit of one candidate and one step, which ends with its folder written.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from bld.models.load import find

LOAD = "from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained({!r})"


def seconds(words: list[str]) -> float:
    """Of a command that succeeds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mask = np.zeros((256, 256), np.uint8)
        mask[64:192, 64:192] = 255
        Image.fromarray(mask).save(folder / "mask.png")
        Image.fromarray(np.full((256, 256, 3), 127, np.uint8)).save(folder / "photograph.png")
        bld, edit = ["-m", "bld.apps.cli"], ["--model", asked.model, "--steps", "1", "--candidates", "1"]
        files = ["--image", f"{folder}/photograph.png", "--mask", f"{folder}/mask.png", "--output", name]
        commands = {
            "`bld --help`": [*bld, "--help"],
            "`import torch, diffusers`": ["-c", "import torch, diffusers"],
            "`DiffusionPipeline.from_pretrained`": ["-c", LOAD.format(str(find(asked.model)))],
            "`bld edit`, one step": [*bld, "edit", *files, "--prompt", "a red apple", *edit],
        }
        turns = [{what: seconds(words) for what, words in commands.items()} for _ in range(asked.repeats)]
    print("| command | s |\n|---|---|")
    for what in commands:
        print(f"| {what} | {median(turn[what] for turn in turns):.2f} |")


if __name__ == "__main__":
    main()
