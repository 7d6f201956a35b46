"""Command-line flags made from the option fields, so that none declares a default of its own."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args

import typer

from bld.options import BATCH, FIELDS, LOADING, BatchOptions, EditOptions, LoadOptions, flag

MODEL, AUTO = "mini", "auto"
LOCAL = "127.0.0.1"  # where servers listen unless told otherwise

# What every command that edits asks for.
ImagePath = Annotated[Path, typer.Option("--image", "-i", help="the photograph")]
MaskPath = Annotated[Path, typer.Option("--mask", help="a picture of its size, white = edit")]
Prompt = Annotated[str, typer.Option("--prompt", "-p", help="what to draw inside the mask")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="an alias (bld models), a diffusers folder, a single file, or a hub id"
    ),
]
Device = Annotated[str, typer.Option(help=LOADING["device"].metadata["help"])]

GROUPS = {
    "Pictures": ("candidates", "finalists", "batch_size", "tune_candidates", "rank_by"),
    "Sampling": (
        "seed",
        "steps",
        "scheduler",
        "strength",
        "guidance_scale",
        "guidance_start",
        "guidance_end",
        "negative_prompt",
        "truncate_prompt",
    ),
    "Mask": ("mask_mode", "invert_mask", "resize_mask", "soft_mask", "shrink", "context", "context_pixels"),
    "Finish": ("reconstruct", "exact", "feather"),
    "Tuning (latents and decoder)": (
        "tuner",
        "tune_blocks",
        "tune_steps",
        "tune_lr",
        "tune_weight",
        "tune_loss",
        "tune_psnr",
        "tune_foreground",
    ),
    "Limits": ("max_pixels",),
}


def kind_of(name: str) -> type:
    """What the flag takes: int for a field of "int | None", str for one of several choices."""
    takes = (get_args(FIELDS[name].type) or (FIELDS[name].type,))[0]
    return takes if isinstance(takes, type) else str


def parameter(name: str, group: str, absent: str = "") -> inspect.Parameter:
    """The option as a typer parameter; None means that the user did not give it.

    absent: what is taken then, where it is not the option's own default.
    """
    option = FIELDS[name]
    low, high = option.metadata["low"], option.metadata["high"]
    kind = kind_of(name)
    spelling = flag(name)
    if kind is bool and option.default is not False:
        spelling += "/--no-" + name.replace("_", "-")
    told, facts = option.metadata["help"], []
    if absent:
        told = told.removesuffix(f"; {option.metadata['absent']}")
        facts.append(f"default: {absent}")
    elif option.default not in (None, False, "") and kind is not bool:
        facts.append(f"default {option.default}")
    if kind in (int, float) and name != "seed":
        facts.append(f"{low} to {high}" if high else f"from {low}")
    help_text = told + (f" ({'; '.join(facts)})" if facts else "")
    annotation = Annotated[
        kind | None,  # type: ignore[valid-type]
        typer.Option(
            spelling,
            help=help_text,
            show_default=False,
            rich_help_panel=group,
        ),
    ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def loading_parameter(name: str) -> inspect.Parameter:
    """A load option as a typer parameter; None means that the user did not give it."""
    option = LOADING[name]
    takes = {bool: bool, tuple: list[str]}.get(type(option.default), str)
    shown = f" (default {option.default})" if isinstance(option.default, str) else ""
    annotation = Annotated[
        takes | None,  # type: ignore[valid-type]
        typer.Option(
            flag(name),
            help=option.metadata["help"] + shown,
            show_default=False,
            rich_help_panel="Loading the model",
        ),
    ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def batch_parameter(name: str) -> inspect.Parameter:
    """A batch option as a typer parameter; None means that the user did not give it."""
    option = BATCH[name]
    takes: Any = (get_args(option.type) or (option.type,))[0]
    if isinstance(option.default, tuple):
        takes = list[str]
    shown = f" (default {option.default})" if type(option.default) is int else ""
    help_text = option.metadata["help"] + shown
    annotation = Annotated[
        takes | None, typer.Option(flag(name), help=help_text, show_default=False, rich_help_panel="Batch")
    ]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def refuse_unreadable(image: Path, mask: Path, options: EditOptions) -> None:
    """Raise InvalidInput for files that cannot be edited, before a model is loaded."""
    from bld.images import open_photograph, read_mask

    for path, opened in ((image, open_photograph), (mask, read_mask)):
        opened(path, max_pixels=options.max_pixels)


FINISH = ("Finish", "Tuning (latents and decoder)")  # what can be chosen anew when an edit is made
PROCESS = ("Sampling", "Mask", "Limits")  # what matters before an edit is finished
RUN = (
    "Pictures",
    "Sampling",
    "Mask",
    "Finish",
    "Tuning (latents and decoder)",
)  # all but how pictures are read


def with_edit_options(
    command: Callable[..., Any],
    groups: tuple[str, ...] = tuple(GROUPS),
    *,
    absent: Mapping[str, str] = MappingProxyType({}),
    without: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """Give a command a flag per field of EditOptions in `groups`; it gets the given ones as `changes`.

    One that has a parameter `loading` gets a flag per field of LoadOptions too, and its options; likewise
    `batch` and BatchOptions. absent: what is taken for options that are not given, where the command has it
    from elsewhere. without: options that mean nothing to it.
    """
    parameters = inspect.signature(command).parameters
    edits = [
        parameter(name, group, absent.get(name, ""))
        for group in groups
        for name in GROUPS[group]
        if name not in without
    ]
    loads = [loading_parameter(name) for name in LOADING] if "loading" in parameters else []
    batches = [batch_parameter(name) for name in BATCH] if "batch" in parameters else []
    own = [p for p in parameters.values() if p.name not in ("changes", "loading", "batch")]

    @functools.wraps(command)
    def wrapped(**given: Any) -> Any:
        changes, loading, batch = (
            {p.name: value for p in flags if (value := given.pop(p.name)) is not None}
            for flags in (edits, loads, batches)
        )
        if loads:
            given["loading"] = LoadOptions(**loading)
        if batches:
            given["batch"] = BatchOptions(**batch)
        return command(**given, changes=changes)

    every = [*own, *batches, *edits, *loads]
    wrapped.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in every}
    return wrapped
