"""Progress on a terminal: one bar per stage of an edit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bld.editor import Progress as EditProgress


def quiet_libraries() -> None:
    """Keep the libraries' own bars and chatter off the terminal: errors alone get through."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def shown(*, quiet: bool) -> Iterator[tuple[Callable[[str], None], EditProgress]]:
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
