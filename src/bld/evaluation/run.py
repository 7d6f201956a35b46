"""Running methods over a suite: a row of JSON for each case, written whole or not at all.

A run that was killed goes on where it was: rows that are there are not made again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bld.classify import Classifier, label_index
from bld.errors import InvalidInput
from bld.evaluation import metrics
from bld.evaluation.distance import Distance
from bld.evaluation.methods import Method, Picture, in_8_bits
from bld.evaluation.suite import Case, Suite
from bld.fidelity import fidelity
from bld.images import Photograph, save_png, write_text_atomic
from bld.masks import FloatArray

SETTINGS = "run.json"


@dataclass(frozen=True)
class Judges:
    """Who says what the edits show, and how different they look."""

    classifier: Classifier
    distance: Distance

    def check(self, suite: Suite) -> None:
        """Raise ModelUnavailable if the classifier lacks the label of a case."""
        for case in suite.cases:
            label_index(self.classifier.labels, case.label)


def run(
    suite: Suite,
    method: Method,
    judges: Judges,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make and measure what is not there yet of a method's rows, in `folder`/METHOD.

    Raises InvalidInput if its rows were begun with other weights, pictures or options.
    """
    settle(folder / method.name, method.facts)
    for done, case in enumerate(suite.cases):
        if progress:
            progress(done, len(suite.cases))
        row = row_path(folder, method.name, case)
        if row.is_file():
            continue
        photograph, pictures = suite.open(case), folder / method.name / f"{case.number:03d}"
        made = method.edit(photograph, case.mask(photograph.size), case)
        if not made:
            raise InvalidInput(f"{method.name} made no picture of case {case.number}")
        pictures.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(made):
            save_png(pictures / f"{number:02d}.png", picture)
        write_text_atomic(row, json.dumps(measured(photograph, made, case, judges), indent=1) + "\n")
    if progress:
        progress(len(suite.cases), len(suite.cases))


def measured(photograph: Photograph, made: Sequence[Picture], case: Case, judges: Judges) -> dict[str, Any]:
    """The row of a case: for each candidate in rank order what was measured, and their diversity.

    place: of the prompted class among what the classifier finds, 0 is the first.
    """
    mask = case.mask(photograph.size)
    scaled: list[FloatArray] = [np.divide(picture, 255, dtype=np.float32) for picture in made]
    places = [metrics.place(judges.classifier, picture, mask, case.label) for picture in scaled]
    correct = [p for p, at in zip(scaled, places, strict=True) if at < metrics.TOP]
    before = Photograph(in_8_bits(photograph))
    kept = [fidelity(before, Photograph(picture), mask) for picture in made]
    return {
        "case": case.number,
        "label": case.label,
        "place": places,
        "diversity": metrics.diversity(judges.distance, correct, mask),
        "background_max_error": [f.max_error for f in kept],
        "background_psnr": [f.psnr for f in kept],
        "seam": [f.seam for f in kept],
        "clipped": [metrics.clipped(picture, mask) for picture in made],
        "isolated": [metrics.isolated(picture, mask) for picture in made],
    }


def row_path(folder: Path, method: str, case: Case) -> Path:
    """Where the row of a case lies."""
    return folder / method / f"{case.number:03d}.json"


def is_whole(suite: Suite, method: str, folder: Path) -> bool:
    """Whether a method has all of its rows."""
    return all(row_path(folder, method, case).is_file() for case in suite.cases)


def rows(suite: Suite, method: str, folder: Path) -> list[dict[str, Any]]:
    """A method's rows, in the suite's order.

    Raises InvalidInput if one is missing, damaged, or of another suite's case.
    """
    found = []
    for case in suite.cases:
        path = row_path(folder, method, case)
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            asked = row["case"], row["label"]
        except (OSError, ValueError, KeyError) as error:
            raise InvalidInput(f"{path}: {method} has no row of that case; run bld eval run again") from error
        if asked != (case.number, case.label):
            raise InvalidInput(
                f"{path}: of case {asked[0]}, {asked[1]}, but {suite.name} has {case.label} as case "
                f"{case.number}: it was built anew since; run bld eval run into another folder"
            )
        found.append(row)
    return found


def shared(suite: Suite, classifier: Classifier) -> dict[str, Any]:
    """What the rows of all methods in a folder have in common."""
    return {
        "suite": str(suite.folder),
        "suite_revision": suite.revision,
        "classifier": classifier.name,
        "classifier_revision": classifier.revision,
    }


def settle(folder: Path, settings: dict[str, Any]) -> None:
    """Write what rows are made with, or check that it is what the folder was begun with.

    Raises InvalidInput for anything else: such rows do not belong into one table.
    """
    path, settings = folder / SETTINGS, json.loads(json.dumps(settings))  # tuples are lists there
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_text_atomic(path, json.dumps(settings, indent=1) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        name = changed[0]
        was = f"{name} {before.get(name)!r}"
        raise InvalidInput(f"{folder} was begun with {was}, not {settings[name]!r}: choose another folder")
