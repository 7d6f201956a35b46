"""Every option of an edit: the only source of defaults, ranges and help texts.

The command line, the tests and later front ends read these fields; none declares a default of its own.
In `EditOptions` None means "choose for me"; `resolve` fills in what an edit runs with.
"""

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

from bld.errors import InvalidInput

MaskMode = Literal["auto", "luminance", "alpha", "transparency"]
Reconstruction = Literal["none", "stitch", "poisson", "latents", "decoder"]
TUNED: tuple[Reconstruction, ...] = ("latents", "decoder")  # by optimisation, so they take a while
TuneLoss = Literal["mean", "area"]
Tuner = Literal["paper", "fast"]
RankBy = Literal["masked", "crop", "ensemble"]
Scheduler = Literal["ddim", "dpm++", "unipc"]
Preset = Literal["paper", "fast"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

MAX_SEED = 2**63 - 1

Options = TypeVar("Options")


def _option(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, absent: str = ""
) -> Any:
    """A field with its help text and its inclusive range. absent: the help's end, what is done without it."""
    full = f"{help}; {absent}" if absent else help
    return field(default=default, metadata={"help": full, "absent": absent, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """What may be asked of an edit beside picture, mask and prompt.

    Raises InvalidInput at construction for a value out of range, so a bad request cannot exist.
    """

    candidates: int = _option(4, "how many pictures to make", low=1, high=256)
    finalists: int | None = _option(
        None,
        "how many of them to finish: the others are dropped on the way, by what the ranker says of the "
        "picture guessed so far; all if left out",
        low=1, high=256,
    )  # fmt: skip
    seed: int | None = _option(
        None, "seed of the first candidate, the next ones count up", low=0, high=MAX_SEED - 256,
        absent="drawn and reported if left out",
    )  # fmt: skip
    steps: int | None = _option(
        None, "denoising steps of the full schedule; the model's own number if left out", low=1, high=1000
    )
    scheduler: Scheduler = _option(
        "ddim",
        "ddim is the paper's, for flow matching Euler's step; dpm++, DPM-Solver++(2M), and unipc need fewer "
        "steps; models distilled to jump keep their own",
    )
    strength: float = _option(
        1.0, "where to start: 1 from pure noise, less keeps more of what is there", low=0.01, high=1
    )
    guidance_scale: float | None = _option(
        None, "how closely to follow the prompt; the model's own value if left out", low=1, high=50
    )
    guidance_start: float = _option(
        0.0, "from which share of the steps on guidance acts; before it, a step costs half", low=0, high=1
    )
    guidance_end: float = _option(1.0, "and up to which share of them", low=0, high=1)
    negative_prompt: str = _option("", "what the picture should not show")
    reconstruct: Reconstruction = _option(
        "stitch",
        "background: stitch and poisson keep every pixel outside the mask, latents and decoder tune the "
        "latent or the decoder's weights towards it, none is the decoder's picture as it is",
    )
    tune_candidates: int = _option(
        1, "how many of the best candidates latents and decoder are run on; the others are stitched",
        low=1, high=256,
    )  # fmt: skip
    tune_blocks: int = _option(
        100,
        "how many of the decoder's last blocks decoder tunes, at most, as the paper tunes all; what comes "
        "before them runs once",
        low=1, high=100,
    )  # fmt: skip
    tuner: Tuner = _option(
        "paper",
        "paper: Adam as it comes; fast: for a dozen steps, Adam with a shorter memory, in bfloat16 where the "
        "processor has it, which with the decoder's blocks tunes what enters the first of them",
    )
    tune_steps: int = _option(75, "steps of latents and decoder, at most", low=1, high=10_000)
    tune_lr: float = _option(1e-4, "their learning rate (Adam); fast: of weights alone", low=1e-7, high=1)
    tune_weight: float = _option(
        100.0, "how much the background counts in their loss beside the edit", low=0, high=1e6
    )
    tune_loss: TuneLoss = _option(
        "mean",
        "mean: over all elements, as in the paper; area: each side of the mask by its own area",
    )
    tune_psnr: float = _option(100.0, "stop once the background has that PSNR, in dB", low=1, high=100)
    tune_foreground: bool = _option(
        True, "hold the edit as it is while the background is tuned; without, its colours go dull"
    )
    exact: bool = _option(
        False,
        "after latents or decoder, the photograph's own pixels outside the mask, and what they differ by "
        "faded out within",
    )
    feather: int | None = _option(
        None,
        "width of the soft edge of stitch and exact, inside the mask, in pixels of the photograph; half a "
        "latent cell if left out",
        low=0,
        high=512,
    )
    shrink: bool | None = _option(
        None,
        "start from a grown mask and shrink it (for thin masks); on if the mask is at most 2 of 32 "
        "latent cells thick",
    )
    rank_by: RankBy = _option(
        "ensemble",
        "what a ranker looks at: masked is the edit on black, as in the paper, crop its box, and ensemble "
        "both and the whole picture",
    )
    soft_mask: bool | None = _option(
        None,
        "let grey edit too: the darker a pixel of the mask, the later the edit begins there, so the more "
        "of the photograph stays; on if the mask is grey over more than its outline",
    )
    mask_mode: MaskMode = _option(
        "auto",
        "what of the mask file counts: its luminance (white = edit), its alpha (opaque = edit) or its "
        "transparency (alpha 0 = edit, and nothing else)",
    )
    invert_mask: bool = _option(False, "edit where the mask says keep")
    resize_mask: bool = _option(False, "scale a mask of another size to the photograph's")
    context: float = _option(
        1.2,
        "side of the region the model works on, as a multiple of the mask's box",
        low=1,
        high=16,
    )
    context_pixels: int = _option(
        32, "least context around the mask's box, both sides together, in pixels of the model",
        low=0, high=1024,
    )  # fmt: skip
    truncate_prompt: bool = _option(False, "cut a prompt that is longer than the model reads")
    max_pixels: int = _option(
        100_000_000,
        "largest picture to open, in pixels: a guard against decompression bombs",
        low=1,
    )
    batch_size: int | None = _option(
        None,
        "candidates denoised together: speed and memory; a picture changes by rounding at most; 4, and "
        "up to 16 where pictures are small, if left out",
        low=1,
        high=256,
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            check(option.name, getattr(self, option.name))
        if self.guidance_start > self.guidance_end:
            raise InvalidInput(
                f"--guidance-start {self.guidance_start} is after --guidance-end {self.guidance_end}: "
                "guidance acts from one to the other"
            )


def _listed(options: Any, *names: str) -> None:
    """Make tuples of what may be given several times (a record gives lists). A text alone is refused."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, str):
            raise InvalidInput(f"{flag(name)} {value!r}: expected a list, such as [{value!r}]")
        object.__setattr__(options, name, tuple(value))


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is loaded, beside its name."""

    device: str = _option("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: DType = _option("auto", "auto, float32, bfloat16, float16")
    config: str | None = _option(
        None,
        "what a model in a single file is built like: an alias, a folder or a hub id, of which no "
        "weights are read; told from the file if left out",
    )
    vae: str | None = _option(None, "another autoencoder for the model: a folder or a hub id")
    lora: tuple[str, ...] = _option(
        (), "LoRA weights to add: a .safetensors file, PATH or PATH:SCALE; may be given several times"
    )
    textual_inversion: tuple[str, ...] = _option(
        (), "a learnt word to add: a .safetensors file, whose name is the word; may be given several times"
    )
    vae_tiling: bool = _option(False, "encode and decode in tiles: less memory where the crop is large")
    offload: bool = _option(
        False, "keep the networks in the CPU's memory, each on the GPU only while it runs: less of the GPU's"
    )
    compile: bool = _option(
        False,
        "compile the network (torch.compile): the first edit of a size takes minutes, the next are faster: "
        "for servers and batches; pictures change by rounding",
    )
    allow_pickle: bool = _option(
        False, "read pickled weights where a part has no others; torch then reads nothing but weights"
    )

    def __post_init__(self) -> None:
        _listed(self, "lora", "textual_inversion")


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a manifest of edits is run."""

    workers: int | None = _option(
        None,
        "processes, each with the model; if left out one for each of --device (such as cuda:0,cuda:1), on a "
        "CPU one for each core and 4 at most. On Ray the most actors, as many as fit if left out",
        low=1, high=4096,
    )  # fmt: skip
    threads: int = _option(
        1, "threads of each worker on a CPU; another number changes pictures by rounding", low=1, high=256
    )
    limit: int | None = _option(None, "edit so many rows this time, then stop", low=1)
    shard: str | None = _option(
        None, "I/N, such as 2/8: only the I-th of N parts of the rows, with a ledger and an index of its own"
    )
    skip_invalid: bool = _option(False, "go on without the rows that cannot be edited")
    retries: int = _option(
        2, "how often rows are tried again whose worker died, together and then each alone", low=0, high=100
    )
    retry_failed: bool = _option(False, "try rows again that failed or were skipped in an earlier run")
    dry_run: bool = _option(False, "check the manifest and say what would be done")
    allow_host: tuple[str, ...] = _option(
        (), "host that http and https URLs in the manifest may name; may be given several times"
    )
    gpus_per_worker: float | None = _option(
        None, "on Ray: GPUs of each actor, such as 0.5; 1 if the cluster has any and it is left out",
        low=0, high=64,
    )  # fmt: skip

    def __post_init__(self) -> None:
        _listed(self, "allow_host")
        for option in dataclasses.fields(self):
            check(option.name, getattr(self, option.name), BATCH)


BATCH = {option.name: option for option in dataclasses.fields(BatchOptions)}

LOADING = {option.name: option for option in dataclasses.fields(LoadOptions)}

FIELDS = {option.name: option for option in dataclasses.fields(EditOptions)}

PRESETS: dict[Preset, dict[str, Any]] = {
    # Section 5 of the paper: 50 DDIM steps, guidance 5, 24 candidates.
    "paper": {"steps": 50, "guidance_scale": 5.0, "candidates": 24, "strength": 1.0},
    # A quarter of the steps, guidance where it matters, a shorter tuning. Its candidates are all finished;
    # of more, the hopeless are dropped.
    "fast": {
        "steps": 12,
        "scheduler": "dpm++",
        "guidance_end": 0.75,
        "candidates": 4,
        "finalists": 4,
        "tuner": "fast",
        "tune_blocks": 4,
        "tune_steps": 12,
        "tune_lr": 5e-4,
    },
}


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def flag(name: str) -> str:
    """The command-line spelling of an option, as in messages: "--guidance-scale"."""
    return "--" + name.replace("_", "-")


def check(name: str, value: Any, options: Mapping[str, Field[Any]] = FIELDS) -> None:
    """Raise InvalidInput if `value` is not one that the option `name` takes."""
    option = options[name]
    takes = get_args(option.type) or (option.type,)  # of "int | None" both, of a Literal its choices
    if value is None and option.default is None:
        return
    if get_origin(option.type) is Literal:
        if value not in takes:
            raise InvalidInput(f"{flag(name)} {value}: choose one of {', '.join(takes)}")
        return
    kind = takes[0]
    if get_origin(option.type) is tuple:  # of texts, each of which says itself what is wrong
        return
    accepted = int | float if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InvalidInput(f"{flag(name)} {value!r}: expected {_KINDS[kind]}")
    low, high = option.metadata["low"], option.metadata["high"]
    if low is not None and not low <= value <= (math.inf if high is None else high):
        span = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidInput(f"{flag(name)} {value}: expected {span}")


def either(kind: type[Options], options: Options | None, changes: Mapping[str, Any]) -> Options:
    """Options that came as one object, or one by one. Raises TypeError if they came both ways."""
    if options is not None and changes:
        raise TypeError(f"give options={kind.__name__}(...) or single options, not both")
    return options or kind(**changes)


def preset(name: Preset, **changes: Any) -> EditOptions:
    """The options of a preset, with explicit changes on top."""
    if name not in PRESETS:
        raise InvalidInput(f"--preset {name}: choose one of {', '.join(PRESETS)}")
    return EditOptions(**{**PRESETS[name], **changes})


def resolve(
    options: EditOptions,
    *,
    steps: int,
    guidance_scale: float,
    shrink: bool,
    soft_mask: bool,
    feather: int,
    batch_size: int = 4,
) -> EditOptions:
    """`options` with every open choice made (a seed is drawn if none came), so that it can be rerun."""
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    return dataclasses.replace(
        options,
        finalists=min(options.candidates, options.finalists or options.candidates),
        seed=seed,
        batch_size=batch_size if options.batch_size is None else options.batch_size,
        steps=steps if options.steps is None else options.steps,
        shrink=shrink if options.shrink is None else options.shrink,
        soft_mask=soft_mask if options.soft_mask is None else options.soft_mask,
        feather=feather if options.feather is None else options.feather,
        guidance_scale=guidance_scale if options.guidance_scale is None else options.guidance_scale,
    )
