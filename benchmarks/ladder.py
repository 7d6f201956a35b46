"""What each measure of the preset `fast` saves and costs: a row a rung, each with those above it; and what
it does not take, a row each beside them: fewer steps of DDIM, and UniPC.

    python benchmarks/ladder.py --cases 16

Rows are kept in --output, so a run that was stopped goes on, and one with more cases adds to it. All figures
are of the cases that every rung has, times included, so run it on a machine that does nothing else.
"""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from bld import EditOptions, Editor
from bld.apps.contest import open_suite
from bld.classify import load_classifier
from bld.evaluation import bench
from bld.evaluation.distance import ClassifierDistance
from bld.evaluation.methods import ByEditor
from bld.evaluation.run import Judges
from bld.options import PRESETS, LoadOptions

PAPER, FAST = PRESETS["paper"], PRESETS["fast"]
SOLVER = {**PAPER, **{name: FAST[name] for name in ("steps", "scheduler")}}
UNIPC: dict[str, Any] = {**SOLVER, "scheduler": "unipc"}
GUIDANCE = {**SOLVER, "guidance_end": FAST["guidance_end"]}
DROPPING = {**GUIDANCE, "finalists": FAST["finalists"]}
RUNGS: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    "ddim-20": {**PAPER, "steps": 20},
    "unipc": UNIPC,
    "solver": SOLVER,
    "guidance": GUIDANCE,
    "dropping": DROPPING,
}


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--dtype", default="auto", help="what the network computes in (float32 on a CPU)")
    parser.add_argument("--suite", default="mini")
    parser.add_argument("--output", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=PAPER["candidates"])
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS))
    given = parser.parse_args()
    loading = LoadOptions(dtype=given.dtype)
    editor = Editor.from_pretrained(given.model, options=loading)
    judge = load_classifier("auto", given.model)
    judges = Judges(judge, ClassifierDistance(judge))
    suite = open_suite(given.suite)
    cases = suite.first(given.cases)
    judges.check(cases)
    bench.begin(given.output, editor, suite, judge, loading, candidates=given.candidates)
    entered = {
        name: ByEditor(editor, EditOptions(**{**RUNGS[name], "candidates": given.candidates}), name)
        for name in given.rungs
    }
    bench.run(editor, entered, cases, judges, given.output, repeats=0)
    found = {entry["system"]: entry for entry in bench.summary(given.output)}
    print("| with | UNet evaluations | seconds | pictures judged a case | batch, % | first, % (95 %) |")
    print("|---" * 6 + "|")
    measured = bench.judged(given.output)
    for name in [rung for rung in RUNGS if measured.get(rung)]:
        rows, entry = measured[name], found[name]
        low, high = 100 * entry["top_low"], 100 * entry["top_high"]
        print(
            f"| {name} | {median(row['evaluations'] for row in rows):.0f} "
            f"| {median(row['seconds'] for row in rows):.1f} | {entry['pictures']:g} "
            f"| {100 * entry['batch_precision']:.1f} "
            f"| {100 * entry['top_precision']:.1f} ({low:.0f} to {high:.0f}) of {entry['cases']} |"
        )


if __name__ == "__main__":
    main()
