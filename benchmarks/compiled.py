"""What `--compile` costs and saves: `python benchmarks/compiled.py [--model mini] [--repeats 5]`.

The first edit of each kind, with what torch compiles for it, and then both kinds in turns: candidates in
batches of 4, on a machine that does nothing else.
"""

import argparse
import time
from statistics import median

import numpy as np

from bld import EditOptions, Editor


def seconds(editor: Editor, candidates: int) -> float:
    """Of an edit of a grey picture at the model's size, ranking and stitching included."""
    side = editor.model.native_size
    photograph, mask = np.full((side, side, 3), 127, np.uint8), np.zeros((side, side), bool)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = True
    started = time.perf_counter()
    editor.edit(photograph, mask, "a red apple", options=EditOptions(candidates=candidates, seed=0))
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    editors = {
        name: Editor.from_pretrained(asked.model, compile=name == "compiled")
        for name in ("plain", "compiled")
    }
    first = {name: seconds(editor, asked.candidates) for name, editor in editors.items()}
    turns = [
        {name: seconds(editor, asked.candidates) for name, editor in editors.items()}
        for _ in range(asked.repeats)
    ]
    print(f"| {asked.model}, {asked.candidates} candidates | first edit, s | next ones, s |")
    print("|---|---|---|")
    for name in editors:
        print(f"| {name} | {first[name]:.2f} | {median(turn[name] for turn in turns):.2f} |")


if __name__ == "__main__":
    main()
