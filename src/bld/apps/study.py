"""`bld study`: which of two edits people prefer, asked in a browser."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bld.apps.flags import LOCAL
from bld.errors import InvalidInput, MissingExtra

if TYPE_CHECKING:
    from bld.evaluation.study import Key

app = typer.Typer(
    name="study", help="Ask people which of two edits they prefer.", invoke_without_command=True
)
Study = Annotated[Path, typer.Argument(help="folder of the study")]


@app.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def build(
    *,
    run: Annotated[Path, typer.Option(help="folder of a bld eval run")] = Path("runs/eval"),
    ours: Annotated[str, typer.Option(help="the method that the others are compared with")] = "bld",
    others: Annotated[str, typer.Option(help="the others, separated by commas")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the study")] = Path("study"),
    seed: Annotated[int, typer.Option(help="of the order and the sides", min=0)] = 0,
) -> None:
    """Write one self-contained page of questions, and the key that says which method is which."""
    from bld.apps.contest import opened
    from bld.evaluation import study

    suite, _ = opened(run)
    named = [name.strip() for name in others.split(",")]
    count = study.build(suite, run, ours, named, output, seed=seed)
    typer.echo(f"{output / study.PAGE}  {count} questions; {study.KEY} is not for the raters")


@app.command()
def serve(
    *,
    folder: Study = Path("study"),
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 is every one")] = LOCAL,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
) -> None:
    """Show the page, and keep the answers in answers.sqlite."""
    try:
        import uvicorn

        from bld.apps.study_server import create_app
    except ImportError as error:
        raise MissingExtra(
            f"bld study serve needs {error.name}: pip install 'blended-latent-diffusion[server]'"
        ) from error
    application = create_app(folder)
    typer.echo(f"http://{host}:{port}")
    uvicorn.run(application, host=host, port=port, log_level="warning")


@app.command()
def analyse(
    *,
    folder: Study = Path("study"),
    answers: Annotated[
        list[Path] | None,
        typer.Option(help="a file of answers that a rater saved; repeatable"),
    ] = None,
) -> None:
    """Who was preferred: the majority of each case's raters, ties split, with intervals and tests."""
    from bld.evaluation import study

    key = study.read_key(folder)
    given = study.Answers(folder / study.ANSWERS).all() if (folder / study.ANSWERS).is_file() else []
    for file in answers or ():
        given += _saved(file, key)
    given = study.last(given)
    if not given:
        raise InvalidInput(f"{folder}: no answers yet")
    raters = {rater for rater, _, _ in given}
    trusted = study.attentive(key.questions, given)
    typer.echo(f"{len(raters)} raters, {len(raters - trusted)} of them left out for a failed check.\n")
    typer.echo(f"| {key.ours} against | in | won | lost | even | share, % (95 %) | p |")
    typer.echo("|---|---|---|---|---|---|---|")
    for v in study.analyse(key.ours, key.questions, given):
        low, high = (100 * bound for bound in v.interval)
        share = f"{100 * v.share:.0f} ({low:.0f} to {high:.0f})"
        typer.echo(f"| {v.other} | {v.kind} | {v.ours} | {v.other_wins} | {v.ties} | {share} | {v.p:.3g} |")


def _saved(file: Path, key: "Key") -> list[tuple[str, int, Any]]:
    """The answers of a file. Raises InvalidInput for anything else, and for those to another study."""
    try:
        given = json.loads(file.read_text("utf-8"))
        found = [(str(a["rater"]), int(a["question"]), str(a["side"])) for a in given]
        others = {str(a["study"]) for a in given if "study" in a} - {key.study}
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InvalidInput(f"{file}: not a file of answers ({error})") from error
    if others:
        raise InvalidInput(f"{file}: answers to the study {others.pop()}, but this one is {key.study}")
    for _, question, side in found:
        if not 0 <= question < len(key.questions) or side not in ("left", "right", "equal"):
            raise InvalidInput(f"{file}: {side} to question {question} is no answer of this study")
    return found
