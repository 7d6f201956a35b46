"""Does the ranker put the better candidates first? From a run's rows (section 4.4, figures 22 and 23)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bld.evaluation import metrics

FIFTH = 5  # the paper shows the top and the bottom 20 %


@dataclass(frozen=True)
class Ranked:
    """Candidates that show the class, in percent, the mean over cases: the first, the fifths, all of them."""

    method: str
    first: float
    top: float
    bottom: float
    all: float


def fifth(count: int) -> int:
    """How many candidates a fifth is, one at least."""
    return max(1, round(count / FIFTH))


def ranked(method: str, found: Sequence[dict[str, Any]]) -> Ranked | None:
    """What a method's rows say of its order; None if no case has two candidates."""
    correct = [[at < metrics.TOP for at in row["place"]] for row in found if len(row["place"]) > 1]
    if not correct:
        return None
    return Ranked(
        method=method,
        first=100 * fmean(row[0] for row in correct),
        top=100 * fmean(fmean(row[: fifth(len(row))]) for row in correct),
        bottom=100 * fmean(fmean(row[-fifth(len(row)) :]) for row in correct),
        all=100 * fmean(fmean(row) for row in correct),
    )


def table(rows: Sequence[Ranked]) -> str:
    """As Markdown."""
    lines = ["| method | first, % | top fifth, % | bottom fifth, % | all, % |", "|---|---|---|---|---|"]
    lines += [f"| {r.method} | {r.first:.1f} | {r.top:.1f} | {r.bottom:.1f} | {r.all:.1f} |" for r in rows]
    return "\n".join(lines)


def in_order(folder: Path) -> list[Path]:
    """The pictures of a case, 00.png, 01.png, ..., the best first: after 99 comes 100."""

    def place(file: Path) -> tuple[float, str]:
        return (int(file.stem) if file.stem.isdecimal() else math.inf), file.name

    return sorted(folder.glob("*.png"), key=place)


def shown(folder: Path, method: str, case: int, most: int) -> tuple[list[Path], list[Path]]:
    """The pictures of a case's top and bottom fifth, no more than `most` of each."""
    files = in_order(folder / method / f"{case:03d}")
    count = min(most, fifth(len(files)))
    return files[:count], files[-count:]
