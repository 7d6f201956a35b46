"""The plan: which rows are edited together, by the whole manifest and never by what is left to do."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from bld.apps.batch.manifest import Row, Values
from bld.errors import InvalidInput
from bld.options import FIELDS

# What each row of a batch may have for itself; in every other option the rows of a unit agree.
OWN = {
    "candidates", "seed", "truncate_prompt", "mask_mode", "invert_mask", "resize_mask", "soft_mask", "shrink",
    "context", "context_pixels", "max_pixels", "rank_by", "reconstruct", "exact", "feather", "tuner",
    "tune_candidates", "tune_blocks", "tune_steps", "tune_lr", "tune_weight", "tune_loss", "tune_psnr",
    "tune_foreground",
}  # fmt: skip
SHARED = tuple(name for name in FIELDS if name not in OWN)

ROOM = 4  # candidates of a unit where --batch-size does not say: a kill costs one

Unit = tuple[Row, ...]
"""Rows that are edited together: what is done, recorded and lost as one."""


def units(rows: Sequence[Row], common: Values) -> list[Unit]:
    """Every row in its unit: at most a micro-batch of candidates, from photographs that are neighbours.

    Rows share a unit if they agree in what a batch shares. A row with more candidates than a micro-batch
    has is a unit by itself.
    """

    def shared(row: Row) -> tuple[str, ...]:
        return tuple(repr(row.value(name, common)) for name in SHARED)

    def order(row: Row) -> tuple[Any, ...]:
        return shared(row), row.image, row.mask, row.number

    return [
        unit for _, alike in groupby(sorted(rows, key=order), key=shared) for unit in _filled(alike, common)
    ]


def _filled(rows: Iterator[Row], common: Values) -> Iterator[Unit]:
    unit: list[Row] = []
    room = 0
    for row in rows:
        candidates = row.value("candidates", common)
        if unit and candidates > room:
            yield tuple(unit)
            unit = []
        if not unit:
            room = row.value("batch_size", common) or ROOM
        unit.append(row)
        room -= candidates
    if unit:
        yield tuple(unit)


def part(text: str | None) -> tuple[int, int]:
    """The numbers of "2/8"; all there is, 1/1, for None. Raises InvalidInput for any other text."""
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InvalidInput(f"--shard {text}: expected I/N with I from 1 to N, such as 2/8")
    return int(found[1]), int(found[2])


def share(every: Sequence[Unit], i: int, n: int) -> Sequence[Unit]:
    """The i-th of n parts of the plan, from 1: the parts are all of it, and none overlap."""
    return every[len(every) * (i - 1) // n : len(every) * i // n]


def left(every: Sequence[Unit], done: set[int], limit: int | None) -> list[Unit]:
    """What is to be done yet, by the numbers of the rows that are done: up to `limit` rows, in whole units.

    A unit of which some rows are done is taken apart: rows that are not edited with all the others are
    edited alone. At least one unit is given, whatever the limit.
    """
    found: list[Unit] = []
    rows = 0
    for unit in every:
        missing = tuple(row for row in unit if row.number not in done)
        for one in [missing] if len(missing) == len(unit) else [(row,) for row in missing]:
            rows += len(one)
            if found and limit is not None and rows > limit:
                return found
            found.append(one)
    return found
