"""Progress on a terminal: one bar per stage of an edit, or one for all rows of a batch."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from bld.editor import Progress as EditProgress

EVERY = 10.0  # s, between two lines where there is no terminal


def quiet_libraries() -> None:
    """Keep the libraries' own bars and chatter off the terminal: errors alone get through."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def shown(*, quiet: bool) -> "Iterator[tuple[Callable[[str], None], EditProgress]]":
    """Bars on stderr while the block runs: (status(text), progress(stage, done, total)).

    Nothing is drawn if `quiet`, or where stderr is no terminal.
    """
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    tasks = {}

    def status(text: str) -> None:
        console.print(text) if console.is_terminal and not quiet else None

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done)

    with bars:
        yield status, progress


@contextmanager
def counted(total: int, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Rows as they are done, with the rate and the time left: call with (done, of which failed) as they grow.

    A bar on a terminal; elsewhere a line on stderr every ten seconds; nothing if `quiet`.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=console,
        disable=quiet or not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=total)
    started = said = time.monotonic()

    def progress(done: int, failed: int) -> None:
        nonlocal said
        now = time.monotonic()
        rate = done / (now - started)
        words = [f"{rate:.2f} rows/s", f"{_duration((total - done) / rate)} left"]
        words += [f"{failed} failed"] * bool(failed)
        bar.update(task, completed=done, description=", ".join(words))
        if not quiet and not console.is_terminal and (now - said >= EVERY or done == total):
            said = now
            console.print(f"{done} of {total} rows, {', '.join(words)}")

    with bar:
        yield progress


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
