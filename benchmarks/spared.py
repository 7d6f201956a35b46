"""What working on nothing but what changes spares: `python benchmarks/spared.py [--model mini]`.

Parts of an edit of scikit-image's coffee cup as the editor does them and as it had to otherwise, in turns,
the median; on a machine that does nothing else.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from skimage.data import coffee

from bld import EditOptions
from bld.encoded import Encoded
from bld.models.base import LatentModel
from bld.models.load import load_model
from bld.options import PRESETS, LoadOptions
from bld.task import Task, check

MASK = Path(__file__).parents[1] / "examples/masks/coffee.png"
BATCH = 4


def seconds(part: Callable[[], object]) -> float:
    """Of one run."""
    with torch.no_grad():
        started = time.perf_counter()
        part()
        return time.perf_counter() - started


def parts(model: LatentModel, task: Task) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """By name: as the editor does it, and as it had to otherwise."""
    height, width = (-(-side // model.multiple) * model.multiple for side in task.photograph.size)
    whole = torch.zeros(1, 3, height, width)
    encoded, x = Encoded(model), task.x()
    z = encoded(x)
    prompts = (f"a red apple, {number}" for number in range(1_000_000))

    def step(z: torch.Tensor, prompt: str = task.prompt) -> Callable[[], object]:
        def run() -> None:
            trajectory = model.trajectory(prompt, task.options, (z.shape[-2], z.shape[-1]))
            trajectory[0].denoise(z.repeat(BATCH, 1, 1, 1))

        return run

    def read(prompt: str) -> None:
        model.trajectory(prompt, task.options, task.grid)

    def decode(count: int) -> Callable[[], object]:
        return lambda: [model.decode(z) for _ in range(count)]

    return {
        f"a step of {BATCH}: of the crop, of the whole photograph": (step(z), step(model.encode(whole))),
        "the photograph's latents: once more, anew": (lambda: encoded(x), lambda: model.encode(x)),
        "the prompt: once more, anew": (lambda: read(task.prompt), lambda: read(next(prompts))),
        "decoding: the finalists, all": (
            decode(PRESETS["fast"]["finalists"]),
            decode(PRESETS["paper"]["candidates"]),
        ),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    model = load_model(given.model, LoadOptions())
    task = check(model, coffee(), MASK, "a red apple", EditOptions(candidates=BATCH, seed=0))
    found = parts(model, task)
    turns = [
        {name: [seconds(part) for part in both] for name, both in found.items()}
        for _ in range(given.repeats + 1)
    ]
    print("| part | ms | ms otherwise |\n|---|---|---|")
    for name in found:
        done, otherwise = (1000 * median(turn[name][i] for turn in turns[1:]) for i in range(2))
        print(f"| {name} | {done:.1f} | {otherwise:.1f} |")


if __name__ == "__main__":
    main()
