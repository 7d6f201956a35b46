"""The plan and the ledger: what runs together, and what is known to be done."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bld.apps.batch.ledger import Ledger, Outcome
from bld.apps.batch.manifest import Row
from bld.apps.batch.plan import left, part, share, units
from bld.errors import BldError, InvalidInput


def a_row(number: int, image: str = "i", **changes: object) -> Row:
    return Row(
        number=number, line=number + 1, id=f"r{number}", image=image, mask="m", prompt="p",
        changes=tuple(sorted(changes.items())),
    )  # fmt: skip


ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.sampled_from([2, 3]), st.sampled_from([1, 4])),
    max_size=40,
).map(
    lambda drawn: [a_row(i, p, candidates=c, steps=s, batch_size=b) for i, (p, c, s, b) in enumerate(drawn)]
)


@given(ROWS, st.integers(1, 5))
def test_every_row_is_in_one_unit_and_one_part(rows: list[Row], n: int) -> None:
    every = units(rows, {})
    assert sorted(row.number for unit in every for row in unit) == [row.number for row in rows]
    assert [unit for i in range(n) for unit in share(every, i + 1, n)] == every
    for unit in every:
        first = unit[0]
        assert {(row.value("steps", {}), row.value("batch_size", {})) for row in unit} == {
            (first.value("steps", {}), first.value("batch_size", {}))
        }
        together = sum(row.value("candidates", {}) for row in unit)
        assert len(unit) == 1 or together <= first.value("batch_size", {})


@given(ROWS, st.randoms())
def test_the_plan_does_not_depend_on_the_order_of_reading(rows: list[Row], random: object) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert units(mixed, {}) == units(rows, {})


def test_what_finishes_an_edit_may_be_each_rows_own() -> None:
    finishes = ({}, {"exact": False}, {"tuner": "fast"}, {"tune_blocks": 2})
    rows = [a_row(i, candidates=1, **finish) for i, finish in enumerate(finishes)]
    assert [len(unit) for unit in units(rows, {})] == [4]
    assert [len(unit) for unit in units([*rows[:2], a_row(2, candidates=1, scheduler="unipc")], {})] == [2, 1]


def test_the_same_photograph_is_edited_in_a_row() -> None:
    every = units([a_row(i, "ab"[i % 2], candidates=2) for i in range(8)], {"batch_size": 4})
    assert [[row.number for row in unit] for unit in every] == [[0, 2], [4, 6], [1, 3], [5, 7]]


def test_what_is_left_is_whole_units_or_single_rows() -> None:
    every = units([a_row(i, candidates=1) for i in range(10)], {})  # of 4, 4 and 2
    assert [len(unit) for unit in every] == [4, 4, 2]
    assert left(every, set(), None) == every
    assert left(every, {0, 1, 2, 3}, None) == every[1:]
    assert [[row.number for row in unit] for unit in left(every, {0, 5, 8, 9}, None)] == [
        [1], [2], [3], [4], [6], [7],
    ]  # fmt: skip
    assert left(every, set(), 9) == every[:2]
    assert left(every, set(), 1) == every[:1], "less than a unit cannot be done"


def test_a_part_is_named_like_2_of_8() -> None:
    assert part(None) == (1, 1)
    assert part("2/8") == (2, 8)
    for bad in ("0/2", "3/2", "1", "1/2/3", "a/b", "-1/2", "1/0"):
        with pytest.raises(InvalidInput, match="expected I/N"):
            part(bad)


# --- the ledger ---


def done(number: int) -> Outcome:
    return Outcome(number=number, id=f"r{number}", status="done", seed=2**62, score=0.5)


def test_the_ledger_keeps_what_it_is_told(tmp_path: Path) -> None:
    failed = Outcome(number=1, id="r1", status="failed", reason="why", tries=3)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert not ledger.begun()
        ledger.begin([Outcome(number=5, id="", status="invalid", reason="bad", tries=0)])
        ledger.record([done(0), failed])
        ledger.record([replace(done(0), seed=1)])
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.begun()
        assert list(ledger.outcomes())[:2] == [done(0), failed], "the first word counts"
        assert (ledger.numbers(), ledger.numbers("failed")) == ({0, 1, 5}, {1})
        ledger.try_again([Outcome(number=6, id="", status="invalid", reason="bad", tries=0)])
        assert ledger.numbers() == {0, 6}


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        with pytest.raises(sqlite3.IntegrityError):
            ledger.record([done(0), replace(done(1), status=None)])  # type: ignore[arg-type]
        ledger.record([done(2)])
        assert ledger.numbers() == {2}


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite"), pytest.raises(InvalidInput, match="another bld batch is at work"):
        Ledger(tmp_path / "l.sqlite")
    Ledger(tmp_path / "l.sqlite").close()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.sqlite").write_bytes(b"not a database, but long enough to look like one" * 40)
    with pytest.raises(InvalidInput, match="not a ledger"):
        Ledger(tmp_path / "l.sqlite")
    with pytest.raises(BldError, match="cannot be written"):
        Ledger(tmp_path / "nowhere" / "l.sqlite")


def test_every_transaction_is_synced(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.sqlite") as ledger:
        (mode,) = ledger._db.execute("PRAGMA journal_mode").fetchone()
        (synchronous,) = ledger._db.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2)  # FULL
