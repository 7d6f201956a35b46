"""One pass of the network on a CPU, by number type, memory layout and threads: `python benchmarks/passes.py`.

The pass is the first of an edit of so many candidates, guidance included; combinations take turns, on a
machine that does nothing else.
"""

import argparse
import itertools
import os
import time
from statistics import median
from typing import Any

import torch

from bld import EditOptions, Editor
from bld.apps.contest import open_suite
from bld.apps.progress import quiet_libraries
from bld.evaluation.bench import Floor
from bld.evaluation.meter import denoiser
from bld.evaluation.methods import ByEditor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def first_pass(editor: Editor, candidates: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the network is given first in an edit of the suite mini."""
    suite = open_suite("mini")
    case, options = suite.cases[0], EditOptions(candidates=candidates, batch_size=candidates, steps=1)
    floor = Floor(editor, ByEditor(editor, options, "pass"))
    photograph = suite.open(case)
    floor.edit(photograph, case.mask(photograph.size), case)
    return floor.passes[0]


def cast(value: Any, dtype: torch.dtype, layout: torch.memory_format) -> Any:
    """A tensor of the pass as the network is to take it; anything else as it is."""
    if not torch.is_tensor(value) or not value.is_floating_point():
        return value
    return value.to(dtype, memory_format=layout) if value.dim() == 4 else value.to(dtype)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    quiet_libraries()
    editor = Editor.from_pretrained(given.model, ranker="none")
    network = denoiser(editor.model)
    args, kinds = first_pass(editor, given.candidates)
    cores = os.cpu_count() or 1
    found: dict[tuple[str, str, int], list[float]] = {}
    for _ in range(given.repeats + 1):
        for key in itertools.product(DTYPES, LAYOUTS, sorted({1, cores})):
            dtype, layout, threads = DTYPES[key[0]], LAYOUTS[key[1]], key[2]
            torch.set_num_threads(threads)
            network.to(dtype=dtype).to(memory_format=layout)
            told = [cast(value, dtype, layout) for value in args]
            named = {name: cast(value, dtype, layout) for name, value in kinds.items()}
            with torch.no_grad():
                started = time.perf_counter()
                network(*told, **named)
                found.setdefault(key, []).append(time.perf_counter() - started)
    print("| numbers | layout | threads | ms an evaluation |\n|---|---|---|---|")
    for (dtype, layout, threads), seconds in found.items():
        took = 1000 * median(seconds[1:]) / (2 * given.candidates)
        print(f"| {dtype} | {layout} | {threads} | {took:.1f} |")


if __name__ == "__main__":
    main()
