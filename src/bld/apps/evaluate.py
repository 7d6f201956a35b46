"""`bld eval`: what the paper measures, on pictures of one's own."""

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from bld.apps.flags import (
    MODEL,
    PROCESS,
    ImagePath,
    MaskPath,
    ModelName,
    Prompt,
    refuse_unreadable,
    with_edit_options,
)
from bld.options import EditOptions, LoadOptions

TILE = 192  # px, longer side

app = typer.Typer(name="eval", help="Measure edits as the paper does.", invoke_without_command=True)


@app.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
@functools.partial(with_edit_options, groups=PROCESS)
def sensitivity(
    *,
    image: ImagePath,
    mask: MaskPath,
    prompt: Prompt,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the sheet")] = Path(
        "sensitivity"
    ),
    other_prompt: Annotated[
        list[str] | None, typer.Option(help="the prompt in other words; may be given several times")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help=f"how many edits of each (default {EditOptions.candidates})", min=1, max=256),
    ] = None,
    model: ModelName = MODEL,
    loading: LoadOptions,
    changes: dict[str, Any],
) -> None:
    """The same edit with one thing changed at a time: prompt, mask, a turn, a blur. One contact sheet."""
    options = EditOptions(**changes, candidates=seeds or EditOptions.candidates)
    import numpy as np
    from PIL import Image

    from bld.apps.contact import Tile, contact_sheet, fitted
    from bld.apps.output import staged
    from bld.apps.progress import quiet_libraries, shown
    from bld.editor import Editor
    from bld.evaluation.sensitivity import Variant, prepare
    from bld.images import to_pil
    from bld.models.load import load_model

    refuse_unreadable(image, mask, options)

    def asked(variant: Variant) -> Tile:
        """The photograph, dark where it stays as it is."""
        picture = np.asarray(to_pil(variant.photograph).convert("RGB"))
        seen = (picture * (0.35 + 0.65 * variant.mask[..., None])).astype(np.uint8)
        return variant.label, fitted(Image.fromarray(seen), TILE)

    with staged(output, ("sensitivity.png",)) as stage:
        with shown(quiet=False) as (status, progress):
            status(f"loading {model}")
            quiet_libraries()
            editor = Editor(load_model(model, loading))
            rows = []
            series, same = prepare(
                editor.model, image, mask, prompt, other_prompts=other_prompt or (), options=options
            )
            for number, variant in enumerate(series):
                progress("variants", number, len(series))
                made = editor.edit(variant.photograph, variant.mask > 0, variant.prompt, options=same)
                edits = [(f"seed {c.seed}", fitted(c.image.convert("RGB"), TILE)) for c in made.candidates]
                rows.append([asked(variant), *edits])
            progress("variants", len(series), len(series))
        contact_sheet(rows).save(stage / "sensitivity.png")
    typer.echo(f"{output / 'sensitivity.png'}  {len(rows)} variants, seeds from {same.seed}")
