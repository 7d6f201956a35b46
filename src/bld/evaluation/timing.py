"""Seconds and parameters (tables 2 and 3): warm, one edit at a time, the median of several."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from bld.editor import Editor
from bld.evaluation.suite import Suite
from bld.options import EditOptions


@dataclass(frozen=True)
class Timed:
    """Median seconds of an edit of so many candidates, its reconstruction included."""

    reconstruct: str
    candidates: int
    seconds: float


def timed(
    editor: Editor,
    suite: Suite,
    *,
    candidates: Sequence[int],
    ways: Sequence[str],
    repeats: int,
    options: EditOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timed]:
    """Edit the suite's first cases, `repeats` of them, in every combination; one more before to warm up."""
    cases = [suite.cases[i % len(suite.cases)] for i in range(repeats + 1)]
    found, total = [], len(candidates) * len(ways)
    for done, (count, way) in enumerate((c, w) for c in candidates for w in ways):
        if progress:
            progress(done, total)
        seconds = []
        for case in cases:
            photograph = suite.open(case)
            asked = replace(options or EditOptions(), candidates=count, seed=case.seed, reconstruct=way)  # type: ignore[arg-type]
            started = time.perf_counter()
            editor.edit(photograph, case.mask(photograph.size), case.prompt, options=asked)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        found.append(Timed(way, count, median(seconds[1:])))
    return found


def parameters(*systems: Any) -> int:
    """How many parameters the networks of models, painters or rankers have, each counted once."""
    networks: dict[int, torch.nn.Module] = {}
    for system in systems:
        parts = [part for own in vars(system).values() for part in (own, getattr(own, "unet", None))]
        networks |= {id(part): part for part in parts if isinstance(part, torch.nn.Module)}
    return sum(weight.numel() for part in networks.values() for weight in part.parameters())
