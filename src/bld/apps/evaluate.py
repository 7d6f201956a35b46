"""`bld eval`: what the paper measures, on pictures of one's own."""

import functools
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from bld.apps.flags import (
    AUTO,
    MODEL,
    PROCESS,
    RUN,
    ImagePath,
    MaskPath,
    ModelName,
    Prompt,
    refuse_unreadable,
    with_edit_options,
)
from bld.errors import InvalidInput
from bld.options import PRESETS, EditOptions, LoadOptions, Reconstruction

TILE = 192  # px, longer side
DARK = 0.65  # of a tile, where the photograph stays as it is

app = typer.Typer(name="eval", help="Measure edits as the paper does.", invoke_without_command=True)


@app.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


SUITE = "mini"
Folder = Annotated[Path, typer.Option("--output", "-o", help="folder of the run")]
SuiteName = Annotated[
    str,
    typer.Option("--suite", help="mini, mini-200, or the manifest that bld eval build wrote, or its folder"),
]


@app.command()
def build(
    *,
    photographs: Annotated[Path, typer.Argument(help="folder of photographs")],
    labels: Annotated[
        Path,
        typer.Option(help="text file: a class on each line, and after a tab its prompt, if another"),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the suite")],
    seed: Annotated[int, typer.Option(help="of the rectangles and classes", min=0)] = 0,
) -> None:
    """Build a suite: for each photograph a random rectangle and a random class, as in the paper."""
    from bld.evaluation import suite
    from bld.images import open_photograph

    files = sorted(file for file in photographs.glob("*") if file.is_file())
    if not files:
        raise InvalidInput(f"{photographs}: no photographs in it")
    classes = suite.read_labels(labels)
    limit = EditOptions().max_pixels
    opened = ((file.stem, open_photograph(file, max_pixels=limit)) for file in files)
    made = suite.build(opened, classes, output, name=output.name, seed=seed)
    typer.echo(f"{output / suite.MANIFEST}  {len(made.cases)} cases")


@app.command()
@functools.partial(
    with_edit_options,
    groups=RUN,
    absent={"candidates": f"{PRESETS['paper']['candidates']}, of baselines their own"},
    without=("seed",),  # each case has its own
)
def run(
    *,
    output: Folder = Path("runs/eval"),
    suite: SuiteName = SUITE,
    methods: Annotated[
        str,
        typer.Option(
            help="separated by commas, each with a name before = if it has another than its own: bld; "
            "blended-diffusion, local-clip, paintbyword, glide-filtered, glide-masked, after a colon their "
            "weights if not the small ones of the package; all of these: all; folder:PATH of finished "
            "pictures, python:MODULE:FUNCTION, remote:URL of an images/edits endpoint"
        ),
    ] = "bld",
    ranker: Annotated[
        str,
        typer.Option(help="the CLIP that ranks for all and guides, by folder or hub id; auto: the model's"),
    ] = AUTO,
    baseline_steps: Annotated[
        int | None, typer.Option(help="steps of the baselines instead of their own: for a quick look", min=2)
    ] = None,
    cases: Annotated[int | None, typer.Option(help="run the first so many (default all)", min=1)] = None,
    classifier: Annotated[
        str, typer.Option(help="an image classifier, by folder or hub id; auto: the judge of the model")
    ] = AUTO,
    lpips: Annotated[
        list[Path] | None,
        typer.Option(help="twice: AlexNet's checkpoint and LPIPS' heads; else the classifier's own features"),
    ] = None,
    model: ModelName = MODEL,
    loading: LoadOptions,
    changes: dict[str, Any],
) -> None:
    """Edit a suite by several methods and measure what came of it; a run that was stopped goes on."""
    from bld.apps.contest import Contest

    contest = Contest(output, model, loading, ranker=ranker, classifier=classifier, lpips=lpips or [])
    options = EditOptions(**{"candidates": PRESETS["paper"]["candidates"], **changes})
    made = changes.get("candidates")
    for note in contest.run(suite, cases, methods, options, candidates=made, steps=baseline_steps):
        typer.echo(f"note: {note}")


@app.command()
def report(
    *,
    folder: Annotated[Path, typer.Argument(help="folder of a run")] = Path("runs/eval"),
) -> None:
    """Write a run's report again: report.md, report.csv, report.html and report.png."""
    from bld.apps.contest import report_again

    for note in report_again(folder):
        typer.echo(f"note: {note}")
    typer.echo(folder / "report.md")


@app.command()
def ranking(
    *,
    folder: Annotated[Path, typer.Argument(help="folder of a run")] = Path("runs/eval"),
    method: Annotated[str, typer.Option(help="whose pictures the sheet shows")] = "bld",
    cases: Annotated[int, typer.Option(help="how many cases the sheet shows", min=1)] = 6,
) -> None:
    """Does the ranker put the better candidates first? A table, and ranking.png of the best and the worst."""
    from bld.apps.contest import ranking_of

    typer.echo(ranking_of(folder, method, cases))


@app.command(name="time")
@functools.partial(with_edit_options, groups=())
def measure_time(
    *,
    suite: SuiteName = SUITE,
    repeats: Annotated[int, typer.Option(help="edits of each kind; the median is shown", min=1)] = 3,
    methods: Annotated[str, typer.Option(help="bld, baselines as in bld eval run, or all")] = "bld",
    candidates: Annotated[
        int | None, typer.Option(help="of a whole batch, if not what each method's authors make", min=1)
    ] = None,
    ways: Annotated[str, typer.Option(help="of background reconstruction, separated by commas")] = ",".join(
        get_args(Reconstruction)
    ),
    model: ModelName = MODEL,
    loading: LoadOptions,
    changes: dict[str, Any],
) -> None:
    """Seconds of an edit and of a batch, with and without background reconstruction, and parameters."""
    from bld.apps.contest import Entry, time_table

    entry = Entry(model, loading, AUTO)
    typer.echo(
        time_table(suite, entry, methods, candidates=candidates, ways=ways.split(","), repeats=repeats)
    )


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
    from bld.apps.output import staged, write_request
    from bld.apps.progress import quiet_libraries, shown
    from bld.apps.record import Inputs, requested
    from bld.editor import Editor
    from bld.evaluation.sensitivity import Variant, prepare
    from bld.images import to_pil
    from bld.models.load import load_model

    refuse_unreadable(image, mask, options)

    def asked(variant: Variant) -> Tile:
        """The photograph, dark where it stays as it is."""
        picture = to_pil(variant.photograph).convert("RGB")
        shade = Image.fromarray(np.rint(255 * (1 - variant.mask) * DARK).astype(np.uint8))
        picture.paste("black", mask=shade)
        return variant.label, fitted(picture, TILE)

    record = "sensitivity.json"
    with staged(output, ("sensitivity.png", record), record=record, read=(image, mask)) as stage:
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
        inputs = Inputs(str(image), str(mask), loading, "none")
        write_request(requested(inputs, prompt, model, same), stage / record)
    typer.echo(f"{output / 'sensitivity.png'}  {len(rows)} variants, seeds from {same.seed}")
