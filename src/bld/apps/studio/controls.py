"""One component per option of an edit, made from the option itself; and back from components to options."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from bld.errors import InvalidInput
from bld.options import FIELDS, PRESETS, EditOptions

MAIN = ("negative_prompt", "candidates", "seed", "strength", "reconstruct", "shrink")
ADVANCED = (
    "steps", "scheduler", "guidance_scale", "guidance_start", "guidance_end", "finalists", "truncate_prompt",
    "batch_size", "rank_by", "soft_mask", "context", "context_pixels", "exact", "feather", "tune_candidates",
    "tuner", "tune_blocks", "tune_steps", "tune_lr", "tune_weight", "tune_loss", "tune_psnr",
    "tune_foreground",
)  # fmt: skip
UPLOAD = ("mask_mode", "resize_mask")  # how a mask that is uploaded is read
ELSEWHERE = {"invert_mask": "the button Invert", "max_pixels": "bld studio --max-pixels"}

AUTO, ON, OFF = "auto", "on", "off"
LABELS = {"shrink": "Shrinking mask", "reconstruct": "Background reconstruction"}  # the rest by their names
# Step; where a hand wants to try rather than to type.
SLIDERS = {"strength": 0.01, "guidance_start": 0.05, "guidance_end": 0.05}
DEFAULT = "default"

Options = dict[str, Any]


def label(name: str) -> str:
    """An option's name for people."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def component(name: str) -> Any:
    """The component of an option, with its default, range, choices and help text."""
    option = FIELDS[name]
    takes, default = get_args(option.type) or (option.type,), option.default
    about = {
        "label": label(name),
        "info": option.metadata["help"],
        "elem_id": f"bld-{name.replace('_', '-')}",
    }
    low, high = option.metadata["low"], option.metadata["high"]
    if get_origin(option.type) is Literal:
        return gr.Dropdown(list(takes), value=default, filterable=False, **about)
    if takes[0] is bool:
        if default is None:
            return gr.Radio([AUTO, ON, OFF], value=AUTO, **about)
        return gr.Checkbox(value=default, **about)
    if takes[0] is str:
        return gr.Textbox(value=default, max_lines=1, **about)
    if default is None:  # as text: it may be empty, and a browser's numbers are too short for a seed
        span = "" if name == "seed" else f", or {low:g} to {high:g}"
        return gr.Textbox(value="", placeholder=AUTO + span, max_lines=1, **about)
    if name in SLIDERS:
        return gr.Slider(low, high, value=default, step=SLIDERS[name], **about)
    return gr.Number(value=default, minimum=low, maximum=high, step=1, **about)


def value(name: str, given: Any) -> Any:
    """An option's value from what its component holds. Raises InvalidInput for what it cannot mean."""
    option = FIELDS[name]
    kind = (get_args(option.type) or (option.type,))[0]
    if kind is bool:
        return {AUTO: None, ON: True, OFF: False}[given] if isinstance(given, str) else given
    if kind is not int and kind is not float:
        return given or ""
    if given is None or not str(given).strip():
        if option.default is not None:
            raise InvalidInput(f"{label(name)} is empty: give a number, such as {option.default}")
        return None
    return _number(name, str(given).strip(), kind)


def _number(name: str, text: str, kind: type) -> int | float:
    """What was typed, to the last digit."""
    for read in (int, float):
        try:
            found: int | float = read(text)
        except ValueError:
            continue
        return int(found) if kind is int and math.isfinite(found) and found == int(found) else found
    raise InvalidInput(
        f"{label(name)} {text!r}: expected a {'whole ' if kind is int else ''}number, or nothing"
    )


def options(given: Mapping[str, Any], **changes: Any) -> EditOptions:
    """The options that components ask for. Raises InvalidInput for values out of range."""
    return EditOptions(**{name: value(name, held) for name, held in given.items()}, **changes)


def preset_values(name: str) -> Options:
    """What a preset sets, of all that any preset sets; the rest is at its default."""
    chosen: Options = dict(PRESETS[name]) if name != DEFAULT else {}  # type: ignore[index]
    touched = dict.fromkeys(key for preset in PRESETS.values() for key in preset)
    return {key: chosen.get(key, FIELDS[key].default) for key in touched}


def preset() -> Any:
    """The choice of a preset."""
    told = [
        f"{name}: " + ", ".join(f"{label(key).lower()} {_short(held)}" for key, held in values.items())
        for name, values in PRESETS.items()
    ]
    return gr.Radio(
        [DEFAULT, *PRESETS], value=DEFAULT, label="Preset", info="; ".join(told), elem_id="bld-preset"
    )


def _short(held: Any) -> str:
    return held if isinstance(held, str) else f"{held:g}"


def in_words(message: str) -> str:
    """A message with the labels of the page where it names flags of the command line."""

    def named(match: re.Match[str]) -> str:
        off, name = match[1], match[2].replace("-", "_")
        if name == "invert_mask":
            return "Invert"
        if name not in FIELDS or name in ELSEWHERE:
            return match[0]
        return f"“{label(name)}”" + (f" {OFF}" if off else "")

    return re.sub(r"--(no-)?([a-z][a-z-]*[a-z])", named, message)
