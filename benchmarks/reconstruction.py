"""The five reconstructions on held-out photographs: background, seam and time (figure 4 as a table).

    python benchmarks/reconstruction.py --data DATA --output runs/reconstruction

Each photograph is edited once; every way then finishes the same latent. Photographs have the model's own
size and are worked on whole, so that nothing is measured but what the ways do: no crop is resampled.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bld import EditOptions, Editor
from bld.fidelity import fidelity
from bld.images import Photograph
from bld.options import Reconstruction
from bld.reconstruct import WAYS
from bld.training.data import load_photographs
from bld.training.sheet import drawn_mask
from bld.training.vocabulary import vocabulary


def measure(
    editor: Editor, data: Path, count: int, ways: list[Reconstruction], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row a photograph and way."""
    rng = np.random.default_rng(0)
    photographs, names = load_photographs(data, held_out=True), vocabulary()
    side = editor.model.native_size
    rows = []
    for number, i in enumerate(rng.permutation(len(photographs))[:count]):
        photograph = cv2.resize(photographs[i], (side, side), interpolation=cv2.INTER_AREA)
        mask = drawn_mask(side, rng)
        prompt = names[rng.integers(len(names))].phrase()
        asked = EditOptions(candidates=1, seed=number, steps=20, **options)
        edit = editor.edit(photograph, mask, prompt, options=asked)
        for way in ways:
            started = time.perf_counter()
            done = finished(editor, photograph, mask, prompt, edit.latents, asked, way)
            seconds = time.perf_counter() - started
            found = fidelity(Photograph(photograph), done, edit.mask)
            rows.append({"photograph": int(i), "way": way, "seconds": seconds, **found._asdict()})
    return rows


def finished(
    editor: Editor,
    photograph: Any,
    mask: Any,
    prompt: str,
    latents: Any,
    asked: EditOptions,
    way: Reconstruction,
) -> Photograph:
    """The same edit finished one way."""
    options = EditOptions(**{**vars(asked), "reconstruct": way})
    return editor.finish(photograph, mask, prompt, latents, options=options).best.photograph


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the photographs, as Markdown; of seams the median, for a flat photograph makes them huge."""
    lines = ["| way | PSNR, dB | max error | SSIM | seam | seconds |", "|---|---|---|---|---|---|"]
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        exact = mine[0]["psnr"] is None
        psnr = "exact" if exact else f"{np.mean([row['psnr'] for row in mine]):.2f}"
        means = {key: np.mean([row[key] for row in mine]) for key in ("max_error", "ssim", "seconds")}
        seam = np.median([row["seam"] for row in mine])
        lines.append(
            f"| `{way}` | {psnr} | {means['max_error']:.0f} | {means['ssim']:.3f} | {seam:.2f} "
            f"| {means['seconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, write the rows, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the training tars")
    parser.add_argument("--output", type=Path, default=Path("runs/reconstruction"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--photographs", type=int, default=32)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--tune-lr", type=float, default=1e-4)
    parser.add_argument("--tune-steps", type=int, default=75)
    parser.add_argument("--tune-loss", default="mean")
    given = parser.parse_args()
    options = {name: getattr(given, name) for name in ("tune_lr", "tune_steps", "tune_loss")}
    editor = Editor.from_pretrained(given.model, ranker="none")
    editor.model.whole = True
    rows = measure(editor, given.data, given.photographs, given.ways, options)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "rows.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
