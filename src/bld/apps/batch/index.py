"""The index: a Parquet table with a line for each row of a job and where its result is."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bld.apps.batch.ledger import Outcome
from bld.apps.batch.manifest import Refusal, Row, arrow
from bld.apps.batch.work import EDITS, sync
from bld.errors import BldError

LINES = 10_000  # written at a time


def write_index(
    path: Path, rows: Iterable[Row], refused: Iterable[Refusal], outcomes: Mapping[int, Outcome]
) -> None:
    """Write the table, whole or not at all. Rows of which nothing is known yet are pending.

    Raises BldError if it cannot be written.
    """
    pyarrow = arrow()
    text, whole, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    schema = pyarrow.schema(
        {
            "number": whole, "line": whole, "id": text, "status": text, "reason": text, "image": text,
            "mask": text, "prompt": text, "result": text, "seed": whole, "score": real,
            "background_max_error": real, "tries": whole, "seconds": real,
        }
    )  # fmt: skip
    lines = sorted(
        [*(_line(row, outcomes.get(row.number)) for row in rows), *map(_refused, refused)],
        key=lambda line: line["number"],
    )
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(lines), LINES):
                some = lines[start : start + LINES]
                writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BldError(
            f"{path}: cannot be written ({error}); the edits are kept: make room and run the same command "
            "again"
        ) from error


def _line(row: Row, outcome: Outcome | None) -> dict[str, Any]:
    asked = {
        "number": row.number, "line": row.line, "id": row.id, "image": row.image, "mask": row.mask,
        "prompt": row.prompt,
    }  # fmt: skip
    if outcome is None:
        return {**asked, "status": "pending"}
    return {
        **asked,
        "status": outcome.status,
        "reason": outcome.reason,
        "result": f"{EDITS}/{row.id}/result.png" if outcome.status == "done" else None,
        "seed": outcome.seed,
        "score": outcome.score,
        "background_max_error": outcome.background_max_error,
        "tries": outcome.tries,
        "seconds": outcome.seconds,
    }


def _refused(refusal: Refusal) -> dict[str, Any]:
    return {
        "number": refusal.number, "line": refusal.line, "id": refusal.id, "status": "invalid",
        "reason": refusal.reason,
    }  # fmt: skip
