"""The `bld` command. `--help` imports no torch: whatever needs it is imported inside the commands."""

import atexit
import dataclasses
import functools
import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bld.apps import evaluate, models, study
from bld.apps.batch import command as batch
from bld.apps.bench import bench
from bld.apps.flags import (
    AUTO,
    FINISH,
    GROUPS,
    MODEL,
    PROCESS,
    Device,
    ImagePath,
    MaskPath,
    ModelName,
    Prompt,
    refuse_unreadable,
    with_edit_options,
)
from bld.apps.server import command as server
from bld.apps.studio import command as studio
from bld.errors import BldError, Cancelled, InvalidInput, MissingExtra, ModelUnavailable
from bld.options import EditOptions, LoadOptions, preset

if TYPE_CHECKING:
    from bld.editor import EditResult

BAD_INPUT, INTERRUPTED = 2, 130
GARBAGE = 20_000  # objects made before the next look for garbage

app = typer.Typer(
    name="bld",
    help="Text-guided local editing of photographs: nothing outside the mask changes.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(evaluate.app)
app.add_typer(models.app)
app.add_typer(study.app)
app.add_typer(batch.app)
app.add_typer(server.app)
app.add_typer(studio.app)
app.command()(bench)


def _version(wanted: bool) -> None:
    if wanted:
        from bld import __version__

        typer.echo(f"bld {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(BAD_INPUT)


@app.command()
@with_edit_options
def edit(
    *,
    image: ImagePath,
    mask: MaskPath,
    prompt: Prompt,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the pictures")] = Path("outputs"),
    model: ModelName = MODEL,
    loading: LoadOptions,
    ranker: Annotated[
        str,
        typer.Option(
            help="CLIP or SigLIP model that puts the best candidate first: a folder, a hub id, none, or "
            "auto: the model's own if it has one"
        ),
    ] = AUTO,
    preset_name: Annotated[
        str | None, typer.Option("--preset", help="paper or fast; single flags go on top")
    ] = None,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="write PNGs that do not say how they were made")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print edit.json when done")] = False,
    changes: dict[str, Any],
) -> None:
    """Edit a photograph where the mask is white, as the prompt says."""
    options = preset(preset_name, **changes) if preset_name else EditOptions(**changes)  # type: ignore[arg-type]
    if not prompt.strip():
        raise InvalidInput("the prompt is empty: say what to draw inside the mask")
    from bld.apps.output import staged, write
    from bld.apps.progress import quiet_libraries, shown
    from bld.apps.record import Inputs, digest, record

    refuse_unreadable(image, mask, options)
    given = image.read_bytes(), mask.read_bytes()  # what is recorded is what is edited, whatever comes after
    sha256 = digest(given[0]), digest(given[1])
    with staged(output, read=(image, mask)) as stage:
        with shown(quiet=as_json) as (status, progress):
            status(f"loading {model}")
            from bld.editor import Editor

            quiet_libraries()
            editor = Editor.from_pretrained(model, ranker=ranker, options=loading)
            result = editor.edit(*given, prompt, options=options, progress=progress)
        chosen = ranker if result.ranker else "none"  # a later version of the model may have one
        facts = record(result, Inputs(str(image), str(mask), loading, chosen, sha256))
        write(result, facts, stage, metadata=not no_metadata)
    report(result, facts, output, as_json=as_json)


@app.command()
@functools.partial(
    with_edit_options,
    groups=FINISH,
    absent={name: "as in the edit" for group in FINISH for name in GROUPS[group]},
)
def reconstruct(
    *,
    folder: Annotated[Path, typer.Argument(help="output folder of bld edit")],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    candidates: Annotated[
        str | None, typer.Option(help="which of its candidates, by their numbers, such as 0 3 (default 0)")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for the pictures (default FOLDER/WAY)")
    ] = None,
    no_metadata: Annotated[
        bool, typer.Option("--no-metadata", help="write PNGs that do not say how they were made")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print edit.json when done")] = False,
    changes: dict[str, Any],
) -> None:
    """Reconstruct the background of an edit's candidates in another way, from their latents."""
    from bld.apps.record import changed_inputs, loading, read_folder, request

    facts = read_folder(folder)
    if more and candidates is None:
        raise InvalidInput(f"{more[0]}: expected one folder; candidates are named with --candidates")
    numbers = numbers_below(" ".join([candidates or "0", *(more or ())]), len(facts["candidates"]))
    places = [facts["candidates"][number]["number"] for number in numbers]  # in the edit itself
    before = request(facts)
    options = dataclasses.replace(before, tune_candidates=len(numbers), **changes)
    changed = changed_inputs(facts)
    if changed:
        raise InvalidInput(f"{changed[0]}; bld reconstruct needs what {folder} was made from")
    from bld.apps.output import read_latents, staged, write
    from bld.apps.progress import quiet_libraries, shown
    from bld.apps.record import Inputs, record

    kept = folder / "latents.safetensors"
    latents = read_latents(kept, [candidate["seed"] for candidate in facts["candidates"]]).of(numbers)
    asked = facts["request"]
    given = Path(asked["image"]).read_bytes(), Path(asked["mask"]).read_bytes()
    sha256 = facts["inputs_sha256"]["image"], facts["inputs_sha256"]["mask"]
    inputs = Inputs(asked["image"], asked["mask"], loading(facts), asked.get("ranker") or "none", sha256)
    target = output or folder / options.reconstruct
    with staged(target, read=(kept, inputs.image, inputs.mask)) as stage:
        with shown(quiet=as_json) as (status, progress):
            status(f"loading {asked['model']}")
            from bld.editor import Editor
            from bld.models.load import load_model

            quiet_libraries()
            editor = Editor(load_model(asked["model"], inputs.loading))
            if editor.model.revision != facts["model"]["revision"]:
                raise InvalidInput(f"{folder} was made by other weights of {asked['model']}: edit anew")
            result = editor.finish(*given, asked["prompt"], latents, options=options, progress=progress)
        scored = [  # when it was ranked
            dataclasses.replace(candidate, score=facts["candidates"][number]["score"])
            for number, candidate in zip(numbers, result.candidates, strict=True)
        ]
        result = dataclasses.replace(result, candidates=tuple(scored))
        # The command that makes these again makes all candidates, each at its own place.
        whole = dataclasses.replace(options, candidates=before.candidates, tune_candidates=max(places) + 1)
        made = record(dataclasses.replace(result, options=whole), inputs, places)
        made["ranker"] = facts.get("ranker")
        write(result, made, stage, metadata=not no_metadata)
    report(result, made, target, as_json=as_json)


@app.command()
@functools.partial(with_edit_options, groups=PROCESS)
def visualize(
    *,
    image: ImagePath,
    mask: MaskPath,
    prompt: Prompt,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the pictures")] = Path("process"),
    frames: Annotated[int, typer.Option(help="how many of the steps to show", min=1)] = 12,
    mp4: Annotated[bool, typer.Option("--mp4", help="write process.mp4 too")] = False,
    model: ModelName = MODEL,
    loading: LoadOptions,
    changes: dict[str, Any],
) -> None:
    """Show an edit as it happens: the picture guessed after each step, and the mask in force."""
    options = EditOptions(**{"candidates": 1, **changes})
    from bld.apps import visualize as pictures
    from bld.apps.output import staged, write_request
    from bld.apps.progress import quiet_libraries, shown
    from bld.apps.record import Inputs, requested
    from bld.models.load import load_model
    from bld.process import process
    from bld.task import check

    refuse_unreadable(image, mask, options)
    if mp4:
        pictures.film_writer()  # or it says what to install
    film = (pictures.FILM,) if mp4 or pictures.has_film(output) else ()
    entries = (*pictures.ENTRIES, *film)
    with staged(output, entries, record=pictures.RECORD, read=(image, mask)) as stage:
        with shown(quiet=False) as (status, progress):
            status(f"loading {model}")
            quiet_libraries()
            loaded = load_model(model, loading)
            task = check(loaded, image, mask, prompt, options)
            seen = []
            for frame in process(loaded, task, frames=frames):
                seen.append(frame)
                progress("blend", frame.step, frame.steps)
        pictures.strip(seen).save(stage / "strip.png")
        pictures.latents(seen[-1]).save(stage / "latents.png")
        pictures.write_gif(seen, stage / "process.gif")
        if mp4:
            pictures.write_mp4(seen, stage / pictures.FILM)
        inputs = Inputs(str(image), str(mask), loading, "none")
        write_request(requested(inputs, prompt, model, task.options), stage / pictures.RECORD)
    typer.echo(f"{output / 'process.gif'}  seed {task.seeds[0]}")


def numbers_below(text: str, count: int) -> list[int]:
    """The numbers in "0,3" or "0 3". Raises InvalidInput unless all are from 0 to count - 1."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and int(word) < count for word in words):
        raise InvalidInput(
            f"--candidates {text}: expected numbers from 0 to {count - 1}, such as 0,{count - 1}"
        )
    return list(dict.fromkeys(int(word) for word in words))


def report(result: "EditResult", facts: dict[str, Any], output: Path, *, as_json: bool) -> None:
    """Say what was made: the record as JSON, or the notes and where the pictures are."""
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{output / 'result.png'}  seed {result.best.seed}, {len(result.candidates)} candidates")


@app.command()
def info(
    picture: Annotated[Path, typer.Argument(help="a PNG that bld wrote")],
    as_json: Annotated[bool, typer.Option("--json", help="print the facts as JSON")] = False,
) -> None:
    """Say how a picture was made, and the command that makes it again."""
    from bld.apps.record import changed_inputs, command, read

    facts = read(picture)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    candidate, ranker = facts["candidate"], facts.get("ranker")
    typer.echo(f"prompt     {facts['request']['prompt']}")
    typer.echo(f"model      {facts['model']['name']} ({facts['model']['revision']})")
    if ranker:
        typer.echo(f"ranker     {ranker['name']} ({ranker['revision']})")
    typer.echo(
        f"candidate  {candidate['number']} of {facts['request']['candidates']}, seed {candidate['seed']}"
    )
    typer.echo(f"background max error {candidate['background_max_error']:g} of 255")
    for line in (*facts["notes"], *changed_inputs(facts)):
        typer.echo(f"note       {line}")
    typer.echo(f"\n{command(facts)}")


@app.command()
def train(
    part: Annotated[
        str,
        typer.Argument(
            help="autoencoder, text-encoder, text-to-image, ranker, judge, export, sheet, or all of these in "
            "order; for the baselines of bld eval: pixels, vqgan, glide, export-baselines"
        ),
    ],
    data: Annotated[Path, typer.Option(help="folder of the training tars")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the run")] = Path("runs/mini"),
    recipe: Annotated[str, typer.Option(help="cpu, gpu or tiny")] = "cpu",
    samples: Annotated[
        int | None,
        typer.Option(help="train the part on that many samples instead of the recipe's", min=1),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(help="model that a new run of a part goes on from, or that the sheets examine"),
    ] = None,
    device: Device = AUTO,
    minutes: Annotated[
        float | None,
        typer.Option(help="write the checkpoint and stop after so long; the same command goes on", min=0),
    ] = None,
    within: Annotated[
        float | None,
        typer.Option(help="minutes after which the part is done, with however many samples", min=0.01),
    ] = None,
) -> None:
    """Train the bundled model or the baselines, a part at a time. Stopped runs go on where they were."""
    try:
        from bld.training.run import start
    except ImportError as error:
        raise MissingExtra(
            f"bld train needs {error.name}: pip install 'blended-latent-diffusion[train]'"
        ) from error
    import logging

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    start(
        part,  # type: ignore[arg-type]
        recipe=recipe,
        data=data,
        folder=output,
        samples=samples,
        start_from=start_from,
        device=device,
        minutes=minutes,
        within=within,
    )


def main() -> int:
    """Run the command line. Exit codes: 0 done, 2 bad input, 130 interrupted, 1 anything else.

    Importing torch and diffusers makes a million objects that stay. Python's garbage collector would go
    through them again and again, and once more on the way out: a quarter of the time of a short edit.
    """
    gc.set_threshold(GARBAGE)
    atexit.register(gc.freeze)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def fail(message: str, code: int) -> int:
        errors.print(f"bld: {message}", markup=False)
        return code

    try:
        code = int(app(standalone_mode=False) or 0)
        return fail("interrupted", code) if code == INTERRUPTED else code
    except typer.TyperException as error:
        message = error.format_message().rstrip(".")
        return fail(f"{message}; see bld --help", BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort, Cancelled):
        return fail("interrupted", INTERRUPTED)
    except (InvalidInput, ModelUnavailable, MissingExtra) as error:
        return fail(str(error), BAD_INPUT)
    except (BldError, OSError) as error:
        return fail(str(error), 1)


if __name__ == "__main__":
    sys.exit(main())
