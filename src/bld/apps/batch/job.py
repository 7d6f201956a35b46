"""A batch from its manifest to its index: check, plan, run, record; and go on where it stopped."""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bld.apps.batch.index import write_index
from bld.apps.batch.ledger import Ledger, Outcome
from bld.apps.batch.manifest import Refusal, Row, Values, arrow, check_files, check_options, digest, read
from bld.apps.batch.plan import Unit, left, part, share, units
from bld.apps.batch.run import Died, Pool
from bld.apps.batch.work import EDITS, Reading, Text, Work, sync, take_name
from bld.apps.progress import counted
from bld.errors import BldError, InvalidInput
from bld.options import BatchOptions

TEXTS = 2000  # that a worker reads at a time
CLAIM, FACTS = "job", "facts.json"  # the folder, and the file in it, that say whose a folder is


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for. common: the options of every row."""

    manifest: Path
    output: Path
    work: Work
    common: Values
    batch: BatchOptions

    @property
    def ledger(self) -> Path:
        """Of this part of the job."""
        return self.output / f"ledger{shard_suffix(self.batch)}.sqlite"

    @property
    def index(self) -> Path:
        """Of this part of the job."""
        return self.output / f"index{shard_suffix(self.batch)}.parquet"

    def facts(self, reading: Reading) -> dict[str, Any]:
        """What decides the results: a run that goes on must have the same."""
        return {
            "manifest": digest(self.manifest),
            "model": self.work.model,
            "ranker": self.work.ranker,
            "weights": reading.revisions,
            "loading": reading.loading,
            "options": dict(self.common),
            "threads": self.work.threads,
        }


@dataclass(frozen=True)
class Tally:
    """How the rows of a job stand. pending: left to a later run."""

    done: int
    failed: int
    invalid: int
    pending: int


class Unfit(InvalidInput):
    """Rows of the manifest cannot be edited. refusals: all of them, in its order."""

    def __init__(self, job: Job, rows: int, refusals: Sequence[Refusal]) -> None:
        super().__init__(
            f"{job.manifest}: {len(refusals)} of {rows} rows cannot be edited: mend them, or go on without "
            "them with --skip-invalid"
        )
        self.refusals = refusals


def shard_suffix(batch: BatchOptions) -> str:
    """What the names of a part's files end in; "" if it is the whole."""
    i, n = part(batch.shard)
    return "" if n == 1 else f"-{i}-of-{n}"


def check(job: Job, pool: Pool) -> Tally:
    """Check the manifest as `run` does, and write nothing."""
    rows, unread = read(job.manifest)
    refused = [*unread, *_refusals(job, pool, rows)[0]]
    _refuse_unfit(job, rows, unread, refused)
    return Tally(0, 0, len(refused), len(rows) + len(unread) - len(refused))


def run(job: Job, pool: Pool, *, quiet: bool = False) -> Tally:
    """Run a job, or go on with it.

    Raises Unfit, before anything is written, if rows cannot be edited and are not to be skipped; InvalidInput
    if the folder holds another job; BldError if the disk is full: then what was done is kept.
    """
    arrow()  # or it says what to install, before the work and not after it
    rows, unread = read(job.manifest)
    mine = share(units(rows, job.common), *part(job.batch.shard))
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(job.ledger)) if job.ledger.exists() else None
        begun = ledger is not None and ledger.begun()
        if ledger and begun:
            again = ledger.numbers("invalid") if job.batch.retry_failed else set()
            refused, reading = _refusals(job, pool, [row for row in rows if row.number in again])
        else:
            refused, reading = _refusals(job, pool, rows)
            _refuse_unfit(job, rows, unread, [*unread, *refused])
        take_folder(job, job.facts(reading))
        ledger = ledger or stack.enter_context(Ledger(job.ledger))
        if not begun:
            ledger.begin(map(_invalid, refused))
        elif job.batch.retry_failed:
            ledger.try_again(map(_invalid, refused))
        return _go_on(job, pool, ledger, mine, unread, quiet)


def _refusals(job: Job, pool: Pool, rows: Sequence[Row]) -> tuple[list[Refusal], Reading]:
    """Which of these rows cannot be edited, and what the others' results depend on."""
    with ThreadPoolExecutor(1) as beside:  # a worker reads the prompts while the files are looked at
        prompts = beside.submit(_check_prompts, job, pool, rows)
        refused = {refusal.number: refusal for refusal in check_files(rows, job.common, job.work.files)}
        found, reading = prompts.result()
    unmatched = {refusal.number: refusal for refusal in check_options(rows, job.common)}
    refused = {**{refusal.number: refusal for refusal in found}, **refused, **unmatched}
    return list(refused.values()), reading


def _refuse_unfit(job: Job, rows: Sequence[Row], unread: Sequence[Refusal], every: Sequence[Refusal]) -> None:
    """Raise Unfit for rows that cannot be edited, unless they are skipped and others are left."""
    count = len(rows) + len(unread)
    if every and (not job.batch.skip_invalid or len(every) == count):
        raise Unfit(job, count, sorted(every, key=lambda refusal: refusal.number))


def _check_prompts(job: Job, pool: Pool, rows: Sequence[Row]) -> tuple[list[Refusal], Reading]:
    def texts(row: Row) -> list[Text]:
        if row.value("truncate_prompt", job.common):
            return []
        return [("prompt", row.prompt), ("negative prompt", row.value("negative_prompt", job.common))]

    distinct = list(dict.fromkeys(text for row in rows for text in texts(row)))
    some = [distinct[start : start + TEXTS] for start in range(0, len(distinct), TEXTS)] or [[]]
    refused: dict[Text, str] = {}
    for reading in _readings(pool, some):
        refused |= reading.refused
    refusals = []
    for row in rows if refused else ():
        reason = next((refused[text] for text in texts(row) if text in refused), None)
        if reason:
            refusals.append(Refusal(row.number, row.line, row.id, reason))
    return refusals, reading


def _readings(pool: Pool, texts: Sequence[Sequence[Text]]) -> Iterator[Reading]:
    for _, reading in pool.map("read", texts):
        if isinstance(reading, Died):
            raise BldError(f"a worker died over the prompts ({reading.reason}): run it again")
        yield reading


def take_folder(job: Job, facts: dict[str, Any]) -> None:
    """Make the folder this job's, or find that it is: whichever part comes first says what the job is.

    Parts may begin at once on several machines, and each has its own ledger locked: so it is said in a
    folder, which takes its name whole and once. Raises InvalidInput if it is another job's, not a batch's
    or cannot be made.
    """
    claim = job.output / CLAIM
    if (job.output / EDITS).exists() and not claim.exists():
        raise InvalidInput(f"--output {job.output}: {EDITS} is there, but no {CLAIM}: choose another folder")
    try:
        missing = [folder for folder in (job.output, *job.output.parents) if not folder.exists()]
        job.output.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync(folder.parent)
        if not claim.exists():
            with tempfile.TemporaryDirectory(prefix=f".{CLAIM}-", dir=job.output) as place:
                stage = Path(place) / CLAIM
                stage.mkdir()
                (stage / FACTS).write_text(json.dumps(facts, indent=2), encoding="utf-8")
                take_name(stage, claim)
        begun = json.loads((claim / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"--output {job.output}: cannot be written or read ({error}); choose another folder"
        ) from error
    other = [name for name, value in facts.items() if begun.get(name) != _as_json(value)]
    if other:
        raise InvalidInput(
            f"--output {job.output}: begun with other {' and '.join(other)}; give what it was begun with, or "
            "another folder"
        )


def _as_json(value: Any) -> Any:
    """With lists in place of tuples, as a ledger gives it back."""
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    return [*value] if isinstance(value, tuple) else value


def _invalid(refusal: Refusal) -> Outcome:
    return Outcome(number=refusal.number, id=refusal.id, status="invalid", reason=refusal.reason, tries=0)


def _go_on(
    job: Job, pool: Pool, ledger: Ledger, mine: Sequence[Unit], unread: Sequence[Refusal], quiet: bool
) -> Tally:
    """Run what is left of this part, and write its index. mine: its share of the plan.

    Rows that cannot be edited have their places in the plan, which is thus the same in every part,
    whatever each could reach.
    """
    invalid = ledger.numbers("invalid")
    fit = [tuple(row for row in unit if row.number not in invalid) for unit in mine]
    todo = left([unit for unit in fit if unit], ledger.numbers(), job.batch.limit)
    shutil.rmtree(job.work.stage, ignore_errors=True)  # what an earlier run was killed over
    (job.output / EDITS).mkdir(exist_ok=True)
    sync(job.output)
    done = failed = 0
    with counted(sum(map(len, todo)), quiet=quiet) as progress:
        for outcomes in edited(pool, todo, job.batch.retries):
            ledger.record(outcomes)
            done += len(outcomes)
            failed += sum(outcome.status == "failed" for outcome in outcomes)
            progress(done, failed)
    shutil.rmtree(job.work.stage, ignore_errors=True)
    rows = [row for unit in mine for row in unit]
    if part(job.batch.shard)[0] > 1:
        unread = ()  # no part edits them: they are in the first one's
    found = {outcome.number: outcome for outcome in ledger.outcomes()}
    write_index(job.index, rows, unread, found)
    stand = Counter(found[row.number].status if row.number in found else "pending" for row in rows)
    return Tally(stand["done"], stand["failed"], stand["invalid"] + len(unread), stand["pending"])


def edited(pool: Pool, todo: Iterable[Unit], retries: int) -> Iterator[list[Outcome]]:
    """Edit units; what became of their rows, as they are done.

    A unit whose worker dies is tried again as it is, `retries` times; then each of its rows alone, as often;
    a row that still has none is failed, with what its workers died of.
    """
    waiting = list(todo)
    died: Counter[tuple[int, ...]] = Counter()  # how often, by the rows of a unit
    deaths: dict[int, list[str]] = {}  # what of, by row
    while waiting:
        again: list[Unit] = []
        for place, answer in pool.map("edit", waiting):
            unit = waiting[place]
            if not isinstance(answer, Died):
                yield [_after(outcome, deaths.get(outcome.number, [])) for outcome in answer]
                continue
            rows = tuple(row.number for row in unit)
            died[rows] += 1
            for number in rows:
                deaths.setdefault(number, []).append(answer.reason)
            if died[rows] <= retries:
                again.append(unit)
            elif len(unit) > 1:
                again += [(row,) for row in unit]
            else:
                (row,) = unit
                outcome = Outcome(
                    number=row.number, id=row.id, status="failed", reason=answer.reason, tries=0
                )
                yield [_after(outcome, deaths[row.number])]
        waiting = again


def _after(outcome: Outcome, deaths: Sequence[str]) -> Outcome:
    """With the tries that came to nothing, and why."""
    if not deaths:
        return outcome
    reason = outcome.reason or f"tried again: {deaths[-1]}"
    return replace(outcome, tries=outcome.tries + len(deaths), reason=reason)
