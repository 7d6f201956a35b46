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

import numpy as np
import torch

from bld import EditOptions, Editor
from bld.apps.progress import quiet_libraries
from bld.evaluation.meter import denoiser

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def first_pass(editor: Editor, network: torch.nn.Module, candidates: int) -> tuple[tuple[Any, ...], Any]:
    """What the network is given first in an edit of a grey picture."""
    passes: list[tuple[tuple[Any, ...], Any]] = []
    hook = network.register_forward_pre_hook(
        lambda _, args, kinds: passes.append((args, kinds)), with_kwargs=True
    )
    side = editor.model.native_size
    photograph, mask = np.full((side, side, 3), 127, np.uint8), np.zeros((side, side), bool)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = True
    options = EditOptions(candidates=candidates, batch_size=candidates, steps=1, seed=0)
    editor.edit(photograph, mask, "a red apple", options=options)
    hook.remove()
    return passes[0]


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
    args, kinds = first_pass(editor, network, given.candidates)
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
