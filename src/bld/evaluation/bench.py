"""`bld bench`: our presets beside what a user would run instead, in one run, and beside the floor.

A row of JSON for each system and case, and for each system and repeat; one that is there is not made
again, so a run that was stopped goes on. Systems take turns, so that a slow minute slows them all.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bld.classify import Classifier
from bld.editor import Editor
from bld.evaluation import metrics
from bld.evaluation.meter import autoencoder, denoiser, metered
from bld.evaluation.methods import ByEditor, Method, Picture
from bld.evaluation.rivals import InpaintPipeline, PlainLoop, Rival
from bld.evaluation.run import Judges, measured, settle, shared
from bld.evaluation.suite import Case, Suite
from bld.images import Photograph, write_text_atomic
from bld.masks import FloatArray
from bld.options import EditOptions, LoadOptions, preset

FLOOR = "floor"
Entered = dict[str, "ByEditor | Rival | Floor"]
Rows = dict[str, list[dict[str, Any]]]


def systems(editor: Editor, *, candidates: int, steps: int | None = None, tuned: bool = True) -> Entered:
    """Who is measured, by name: two rivals, our presets, and the floor under the preset `paper`.

    steps: other than the presets' own, at most. tuned: whether backgrounds are reconstructed.
    """
    paper, fast = (_bounded(preset(name), candidates, steps) for name in ("paper", "fast"))
    way: Any = "decoder" if tuned else "stitch"
    rest: Any = (editor.model, editor.ranker, paper)
    ours = {"ours-paper": paper, "ours-fast": fast}
    named = {name: ByEditor(editor, replace(o, reconstruct=way), name) for name, o in ours.items()}
    return {
        "diffusers": InpaintPipeline(*rest, tuned=tuned),
        "plain": PlainLoop(*rest, tuned=tuned),
        **named,
        FLOOR: Floor(editor, named["ours-paper"]),
    }


def _bounded(options: EditOptions, candidates: int, steps: int | None) -> EditOptions:
    own = options.steps
    fewer = own if steps is None else min(steps, own or steps)
    return replace(options, candidates=candidates, steps=fewer)


class Floor:
    """The passes of the network that another method's edit needs, and nothing else.

    Its first edit is the other's, whose passes it remembers; every further one runs them alone.
    """

    def __init__(self, editor: Editor, method: ByEditor) -> None:
        self.network, self.method, self.name = denoiser(editor.model), method, FLOOR
        self.facts = method.facts
        self.passes: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def edit(self, photograph: Photograph, mask: FloatArray, case: Case) -> Sequence[Picture]:
        """No picture comes of it."""
        if self.passes:
            with torch.no_grad():
                for args, kinds in self.passes:
                    self.network(*args, **kinds)
            return []
        hook = self.network.register_forward_pre_hook(
            lambda _, args, kinds: self.passes.append((args, kinds)), with_kwargs=True
        )
        try:
            self.method.edit(photograph, mask, case)
        finally:
            hook.remove()
        return []


def begin(
    folder: Path, editor: Editor, suite: Suite, classifier: Classifier, loading: LoadOptions, **asked: Any
) -> None:
    """Settle what all systems in a folder have in common: of `loading` everything, for time is measured.

    suite: the whole of it, so that a run of more cases adds to one of fewer. Raises InvalidInput if the
    folder was begun with anything else.
    """
    model = {"model": editor.model.name, "revision": editor.model.revision}
    settle(folder, {**model, **asdict(loading), **shared(suite, classifier), **asked})


def run(
    editor: Editor,
    entered: Entered,
    suite: Suite,
    judges: Judges | None,
    folder: Path,
    *,
    repeats: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the rows that are not there: quality on every case if there are judges, time on the first.

    Raises InvalidInput if a system's rows were begun with other weights or options.
    """
    jobs: list[tuple[Path, Callable[[], dict[str, Any]]]] = []
    for number in range(repeats):
        for name, method in entered.items():
            make = partial(_row, editor, method, suite, suite.cases[0], None)
            jobs.append((folder / name / f"time-{number:02d}.json", make))
    for case in suite.cases if judges else ():
        for name, method in entered.items():
            if name != FLOOR:
                make = partial(_row, editor, method, suite, case, judges)
                jobs.append((folder / name / f"case-{case.number:03d}.json", make))
    for name, method in entered.items():
        settle(folder / name, method.facts)
    missing = [job for job in jobs if not job[0].is_file()]
    if any(path.name.startswith("time") for path, _ in missing):
        for method in entered.values():  # the first of each is slower
            _row(editor, method, suite, suite.cases[0], None)
    for done, (path, row) in enumerate(missing):
        progress(done, len(missing))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, json.dumps(row(), indent=1) + "\n")
    progress(len(missing), len(missing))


def _row(editor: Editor, method: Method, suite: Suite, case: Case, judges: Judges | None) -> dict[str, Any]:
    photograph = suite.open(case)
    mask = case.mask(photograph.size)
    with metered(denoiser(editor.model), *autoencoder(editor.model)) as cost:
        made = method.edit(photograph, mask, case)
    found = measured(photograph, made, case, judges) if judges else {}
    return {**asdict(cost), "pictures": len(made), **found}


# --- what the rows add up to ---


def rows(folder: Path, kind: str) -> Rows:
    """The rows of a kind, "time" or "case", of every system that has some."""
    found: Rows = {}
    for path in sorted(folder.glob(f"*/{kind}-*.json")):
        found.setdefault(path.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def judged(folder: Path) -> Rows:
    """The rows of the cases that every system has, so that all are judged on the same ones."""
    found = rows(folder, "case")
    shared = set.intersection(*({row["case"] for row in some} for some in found.values())) if found else set()
    return {name: [row for row in some if row["case"] in shared] for name, some in found.items()}


def summary(folder: Path) -> list[dict[str, Any]]:
    """One entry a system: medians of the costs with the least and the most seconds, means of quality.

    Quality is that of the cases that every system has. The batch is the candidates that were finished: of
    a preset that drops some, those that its ranker kept. Of the background and the seam the first candidate
    counts, the one that was reconstructed.
    """
    timed, quality = rows(folder, "time"), judged(folder)
    return [
        _timed(name, timed.get(name, [])) | _judged(quality.get(name, []))
        for name in dict.fromkeys([*timed, *quality])
    ]


def _timed(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not found:
        return {"system": name, "repeats": 0}
    seconds = [row["seconds"] for row in found]
    grown = [row["megabytes"] for row in found if row["megabytes"] is not None]
    return {
        "system": name,
        "repeats": len(found),
        "seconds": median(seconds),
        "seconds_least": min(seconds),
        "seconds_most": max(seconds),
        "overhead": median(row["seconds"] / row["inside"] - 1 for row in found),
        "evaluations": median(row["evaluations"] for row in found),
        "megabytes": median(grown) if grown else None,
    }


def _judged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not found:
        return {"cases": 0}
    correct = [[at < metrics.TOP for at in row["place"]] for row in found]
    low, high = metrics.wilson(sum(row[0] for row in correct), len(correct))
    return {
        "cases": len(found),
        "pictures": metrics.mean([float(row["pictures"]) for row in found]),
        "batch_precision": metrics.mean([metrics.mean([float(hit) for hit in row]) for row in correct]),
        "top_precision": sum(row[0] for row in correct) / len(correct),
        "top_low": low,
        "top_high": high,
        "background_psnr": metrics.mean([row["background_psnr"][0] for row in found]),
        "seam": metrics.mean([row["seam"][0] for row in found]),
    }


COLUMNS = (
    "system", "seconds (least to most)", "faster than plain", "beside the networks, %", "UNet evaluations",
    "memory, MB", "pictures judged a case", "precision of the batch, %", "precision of the first, % (95 %)",
    "background PSNR, dB", "seam",
)  # fmt: skip


def table(found: Sequence[dict[str, Any]]) -> str:
    """The summary as Markdown."""
    plain = next((entry.get("seconds") for entry in found if entry["system"] == "plain"), None)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(_cells(entry, plain)) + " |" for entry in found)])


def _cells(entry: dict[str, Any], plain: float | None) -> list[str]:
    cells = [entry["system"], *["-"] * (len(COLUMNS) - 1)]
    if entry["repeats"]:
        cells[1] = f"{entry['seconds']:.2f} ({entry['seconds_least']:.2f} to {entry['seconds_most']:.2f})"
        cells[2] = f"{plain / entry['seconds']:.2f}" if plain else "-"
        cells[3] = f"{100 * entry['overhead']:.1f}"
        cells[4] = f"{entry['evaluations']:.0f}"
        cells[5] = "-" if entry["megabytes"] is None else f"{entry['megabytes']:.0f}"
    if entry["cases"]:
        low, high = 100 * entry["top_low"], 100 * entry["top_high"]
        cells[6] = f"{entry['pictures']:g}"
        cells[7] = f"{100 * entry['batch_precision']:.1f}"
        cells[8] = f"{100 * entry['top_precision']:.1f} ({low:.0f} to {high:.0f})"
        cells[9] = "exact" if entry["background_psnr"] is None else f"{entry['background_psnr']:.1f}"
        cells[10] = "-" if entry["seam"] is None else f"{entry['seam']:.2f}"
    return cells


def write(folder: Path) -> str:
    """Write bench.json and bench.md into a run's folder; returns the table."""
    found = summary(folder)
    write_text_atomic(folder / "bench.json", json.dumps(found, indent=1) + "\n")
    text = table(found)
    write_text_atomic(folder / "bench.md", text + "\n")
    return text
