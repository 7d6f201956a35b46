"""The ledger: what is done, in SQLite. One process writes it, and what it says is on the disk."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from bld.errors import BldError, InvalidInput

FORMAT = 1
Status = Literal["done", "failed", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a row. reason: why not, or what went wrong before it was done.

    tries: how often it was begun. seed, score, background_max_error: of its best candidate.
    """

    number: int
    id: str
    status: Status
    reason: str = ""
    tries: int = 1
    seed: int | None = None
    score: float | None = None
    background_max_error: float | None = None
    seconds: float | None = None


COLUMNS = tuple(field.name for field in fields(Outcome))


class Ledger:
    """The ledger of one job. A second process that wants it is refused until the first has ended.

    Every transaction is synced to the disk before it counts (WAL, synchronous=FULL); one that was cut off
    by a crash never was.
    """

    def __init__(self, path: Path) -> None:
        """Open or begin it. Raises InvalidInput where another process has it or where it is no ledger."""
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=0)
            # Exclusive: the lock is held until this process ends, however it ends.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                self._db.execute("CREATE TABLE IF NOT EXISTS job (format INTEGER NOT NULL)")
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, id TEXT NOT NULL, "
                    "status TEXT NOT NULL, reason TEXT NOT NULL, tries INTEGER NOT NULL, seed INTEGER, "
                    "score REAL, background_max_error REAL, seconds REAL)"
                )
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise InvalidInput(f"{path}: another bld batch is at work on it; wait for it") from error
            if "disk" in str(error) or "unable to open" in str(error):
                raise self._failed(error) from error
            raise InvalidInput(
                f"{path}: not a ledger of bld batch ({error}); choose another --output"
            ) from error

    def close(self) -> None:
        """Give it back."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begun(self) -> bool:
        """Whether `begin` was called once."""
        return self._db.execute("SELECT 1 FROM job").fetchone() is not None

    def begin(self, invalid: Iterable[Outcome]) -> None:
        """Keep the rows that cannot be edited, and that they are known now."""
        with self._transaction():
            self._db.execute("INSERT INTO job VALUES (?)", (FORMAT,))
            self._insert(invalid)

    def record(self, outcomes: Iterable[Outcome]) -> None:
        """Keep what became of some rows: all of them, or none if this is cut off. The first word counts."""
        with self._transaction():
            self._insert(outcomes)

    def try_again(self, invalid: Iterable[Outcome]) -> None:
        """Take back what failed or could not be edited; keep the rows that still cannot be."""
        with self._transaction():
            self._db.execute("DELETE FROM rows WHERE status IN ('failed', 'invalid')")
            self._insert(invalid)

    def numbers(self, *statuses: Status) -> set[int]:
        """The numbers of the rows that are of one of these statuses; of all that it knows without any."""
        marks = ", ".join("?" * len(statuses))
        where = f" WHERE status IN ({marks})" if statuses else ""
        return {number for (number,) in self._db.execute(f"SELECT number FROM rows{where}", statuses)}

    def outcomes(self) -> Iterator[Outcome]:
        """Everything it knows, in the order of the manifest."""
        for values in self._db.execute(f"SELECT {', '.join(COLUMNS)} FROM rows ORDER BY number"):
            yield Outcome(**dict(zip(COLUMNS, values, strict=True)))

    def _insert(self, outcomes: Iterable[Outcome]) -> None:
        marks = ", ".join("?" * len(COLUMNS))
        values: Sequence[Any] = [astuple(outcome) for outcome in outcomes]
        self._db.executemany(
            f"INSERT INTO rows ({', '.join(COLUMNS)}) VALUES ({marks}) ON CONFLICT (number) DO NOTHING",
            values,
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and "locked" not in str(error):
                raise self._failed(error) from error
            raise

    def _failed(self, error: Exception) -> BldError:
        return BldError(
            f"{self.path}: cannot be written ({error}); what was done is kept: make room and run the same "
            "command again"
        )
