"""`bld bench`: our presets beside diffusers' pipeline and the paper's plain loop."""

import functools
from pathlib import Path
from typing import Annotated, Any

import typer

from bld.apps.evaluate import SUITE, SuiteName
from bld.apps.flags import AUTO, MODEL, ModelName, with_edit_options
from bld.errors import InvalidInput
from bld.options import PRESETS, LoadOptions


@functools.partial(with_edit_options, groups=())
def bench(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the run")] = Path("runs/bench"),
    suite: SuiteName = SUITE,
    cases: Annotated[
        int, typer.Option(help="cases that quality is judged on; 0 measures time alone", min=0)
    ] = 16,
    repeats: Annotated[
        int, typer.Option(help="edits of each system whose time is taken, in turns", min=0)
    ] = 3,
    candidates: Annotated[int, typer.Option(help="candidates of each edit", min=1, max=256)] = PRESETS[
        "paper"
    ]["candidates"],
    steps: Annotated[
        int | None, typer.Option(help="denoising steps at most (default those of the presets)", min=1)
    ] = None,
    systems: Annotated[
        str, typer.Option(help="which of them, separated by commas")
    ] = "diffusers,plain,ours-paper,ours-fast,floor",
    reconstruct: Annotated[bool, typer.Option(help="tune the decoder for the first candidate")] = True,
    classifier: Annotated[
        str, typer.Option(help="who judges, by folder or hub id; auto: the judge of the model")
    ] = AUTO,
    model: ModelName = MODEL,
    loading: LoadOptions,
    changes: dict[str, Any],
) -> None:
    """Time, evaluations of the network, memory and quality, side by side; a run that was stopped goes on."""
    from bld.apps.contest import open_suite
    from bld.apps.progress import quiet_libraries, shown
    from bld.classify import load_classifier
    from bld.editor import Editor
    from bld.evaluation import bench as benchmark
    from bld.evaluation.distance import ClassifierDistance
    from bld.evaluation.run import Judges

    quiet_libraries()
    editor = Editor.from_pretrained(model, options=loading)
    judged = model if cases else MODEL
    judge = load_classifier(classifier, judged, device=loading.device, pickles=loading.allow_pickle)
    every = benchmark.systems(editor, candidates=candidates, steps=steps, tuned=reconstruct)
    unknown = set(systems.split(",")) - every.keys()
    if unknown:
        raise InvalidInput(f"--systems {systems}: known are {', '.join(every)}")
    entered = {name: method for name, method in every.items() if name in systems.split(",")}
    whole = open_suite(suite)
    found = whole.first(max(1, cases))
    judges = Judges(judge, ClassifierDistance(judge)) if cases else None
    if judges:
        judges.check(found)
    benchmark.begin(
        output, editor, whole, judge, loading, candidates=candidates, steps=steps, reconstruct=reconstruct
    )
    with shown(quiet=False) as (status, progress):
        status(f"{len(entered)} systems")
        benchmark.run(
            editor, entered, found, judges, output, repeats=repeats,
            progress=lambda done, total: progress("bench", done, total),
        )  # fmt: skip
    typer.echo(benchmark.write(output))
