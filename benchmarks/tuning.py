"""Tuning the decoder: the paper's recipe beside shorter ones, on the same latents.

    python benchmarks/tuning.py --cases 8

PSNR of the background is in dB, of the edit against the decoder's picture likewise; seconds are those of the
reconstruction alone, on a machine that does nothing else.
"""

import argparse
from statistics import mean, median
from typing import Any

import numpy as np

from bld import EditOptions, Editor
from bld.apps.contest import open_suite
from bld.options import PRESETS

FAST = {name: value for name, value in PRESETS["fast"].items() if name.startswith("tune")}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper, 20 steps at 1e-3": {"tune_steps": 20, "tune_lr": 1e-3},
    "fast": FAST,
    "fast, last 3 blocks": {**FAST, "tune_blocks": 3},
    "fast, all blocks": {**FAST, "tune_blocks": 100},
    "fast, exact": {**FAST, "exact": True},
}


def main() -> None:
    """Edit each case once, finish it by every recipe, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--suite", default="mini")
    parser.add_argument("--cases", type=int, default=8)
    given = parser.parse_args()
    editor = Editor.from_pretrained(given.model, ranker="none")
    suite = open_suite(given.suite).first(given.cases)
    found: dict[str, list[tuple[float, float | None, float, float | None]]] = {name: [] for name in RECIPES}
    for case in suite.cases:
        photograph = suite.open(case)
        mask = case.mask(photograph.size)
        base = EditOptions(candidates=1, seed=case.seed, steps=20, scheduler="dpm++", reconstruct="none")
        edit = editor.edit(photograph, mask, case.prompt, options=base)
        for name, recipe in RECIPES.items():
            options = EditOptions(**{**vars(base), **recipe, "reconstruct": "decoder"})
            done = editor.finish(photograph, mask, case.prompt, edit.latents, options=options)
            before, after = (r.best.photograph.pixels[mask > 0].astype(np.float64) for r in (edit, done))
            held = float(10 * np.log10(255**2 / np.square(after - before).mean()))
            seen = done.best.fidelity
            found[name].append((done.seconds["reconstruct"], seen.psnr, held, seen.seam))
    print("| recipe | seconds | background | edit | seam |\n|---|---|---|---|---|")
    for name, rows in found.items():
        seconds, psnr, held, seam = zip(*rows, strict=True)
        kept = "exact" if None in psnr else f"{mean(psnr):.2f}"
        print(f"| {name} | {median(seconds):.2f} | {kept} | {mean(held):.2f} | {median(seam):.2f} |")


if __name__ == "__main__":
    main()
