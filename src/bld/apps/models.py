"""`bld models`: the known models as a table, and fetching one before it is needed."""

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bld.models.known import KNOWN, Known
from bld.options import LOADING

app = typer.Typer(
    name="models",
    help="List the models that bld knows, or fetch one from the hub.",
    invoke_without_command=True,
)


@app.callback()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="print the facts as JSON")] = False,
) -> None:
    """List the models that bld knows: --model takes the alias, the id, or any other of these families."""
    if context.invoked_subcommand:
        return
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(model) for model in KNOWN], indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for model in KNOWN:
        table.add_row(*cells(model))
    # One line a model, however narrow the window; a licence has brackets in its name.
    Console(highlight=False, markup=False, width=180).print(table)


HEADINGS = ("alias", "id", "family", "px", "parameters", "download", "memory", "licence", "tried with")


def cells(model: Known) -> tuple[str, ...]:
    """A model's row, here and in docs/models.md."""
    return (
        model.alias,
        model.id,
        model.family,
        str(model.size),
        f"{model.parameters:g} B",
        f"{model.download:g} GB" if model.download else "none",
        f"{model.memory:g} GB",
        model.licence,
        model.tried,
    )


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="alias or hub id")],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help=LOADING["allow_pickle"].metadata["help"])
    ] = False,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="no weights: what a model in a single file needs, a few MB")
    ] = False,
) -> None:
    """Download a model to the hub's cache, but for files that it has. HF_HOME says where the cache is."""
    from bld.errors import InvalidInput
    from bld.models.load import BUNDLED_NAMES, CONFIGURATION
    from bld.models.load import fetch as download

    if name in BUNDLED_NAMES:
        raise InvalidInput(f"{name} is in the package: there is nothing to fetch")
    folder = download(name, CONFIGURATION if config_only else (), pickles=allow_pickle)
    what = f"the configuration of {name}" if config_only else name
    typer.echo(f"{what} is complete in {folder}")
