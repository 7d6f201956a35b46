"""`bld batch`: many edits from a manifest, durably, by several workers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bld.apps.cluster import Address
from bld.apps.flags import AUTO, MODEL, ModelName, with_edit_options
from bld.errors import BldError
from bld.options import BatchOptions, EditOptions, LoadOptions

if TYPE_CHECKING:
    from bld.apps.batch.job import Job
    from bld.apps.batch.run import Pool

app = typer.Typer()
MOST_WORKERS = 4  # unless more are asked for: each has the model in its memory


def _batch(
    *,
    manifest: Annotated[
        Path,
        typer.Argument(
            help="table of edits, .jsonl, .csv or .parquet: image, mask, prompt, an id and any option of an "
            "edit for each row"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the edits")] = Path("batch"),
    ray: Address = None,
    model: ModelName = MODEL,
    loading: LoadOptions,
    ranker: Annotated[str, typer.Option(help="as in bld edit")] = AUTO,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="write PNGs that do not say how they were made")
    ] = False,
    batch: BatchOptions,
    changes: dict[str, Any],
) -> None:
    """Run the edits of a manifest. The same command goes on where it was stopped."""
    EditOptions(**changes)  # what holds for all rows is refused at once
    from bld.apps.batch.files import Files
    from bld.apps.batch.job import Job, Unfit, check, run, shard_suffix
    from bld.apps.batch.manifest import digest
    from bld.apps.batch.work import Work

    digest(manifest)  # likewise a manifest that cannot be read
    folder = output.absolute()
    work = Work(
        model=model,
        ranker=ranker,
        loading=loading,
        common=tuple(changes.items()),
        output=str(folder),
        stage=str(folder / f".stage{shard_suffix(batch)}"),
        files=Files(tuple(host.lower() for host in batch.allow_host)),
        threads=batch.threads,
        metadata=not no_metadata,
        dry_run=batch.dry_run,
    )
    job = Job(manifest=manifest, output=folder, work=work, common=changes, batch=batch)
    try:
        with _pool(job, ray) as pool:
            tally = check(job, pool) if batch.dry_run else run(job, pool)
    except Unfit as error:
        for refusal in error.refusals:
            id = f" ({refusal.id})" if refusal.id else ""
            typer.echo(f"{manifest}:{refusal.line}{id}: {refusal.reason}", err=True)
        raise
    if batch.dry_run:
        typer.echo(f"{manifest}  {tally.pending} rows to edit, {tally.invalid} to skip")
        return
    words = [
        f"{tally.done} done",
        f"{tally.failed} failed",
        f"{tally.invalid} invalid",
        f"{tally.pending} pending",
    ]
    typer.echo(f"{job.index}  {', '.join(word for word in words if not word.startswith('0 '))}")
    if tally.failed:
        raise BldError(f"{tally.failed} rows failed: the index says why; --retry-failed tries them again")


@contextmanager
def _pool(job: "Job", ray: str | None) -> "Iterator[Pool]":
    """The workers: processes here, or actors of a cluster."""
    if ray is None:
        from bld.apps.batch.run import Processes

        with Processes(job.work, job.batch.workers or _workers(job.work.loading)) as processes:
            yield processes
        return
    from bld.apps.batch.ray import on_cluster

    with on_cluster(job.work, job.batch, ray) as actors:
        yield actors


def _workers(loading: LoadOptions) -> int:
    """One for each device that is named or found; on a CPU one for each core, and not more than a few."""
    devices = loading.device.split(",")
    if devices == ["cpu"] or (devices == [AUTO] and not Path("/dev/nvidia0").exists()):
        return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, MOST_WORKERS)
    return len(devices)


app.command(name="batch")(with_edit_options(_batch, absent={"seed": "made from each row's id"}))
