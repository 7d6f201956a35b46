"""The fields of `POST /v1/images/edits`, as JSON schemas: what is checked is what openapi.json says."""

from typing import Any, get_args

from bld.apps.flags import kind_of
from bld.options import FIELDS, Preset

MAX_PROMPT = 32_000  # characters, as OpenAI has it
FORMATS = ("png", "jpeg", "webp")
AUTO = "auto"

# OpenAI's words for how much work is done: a preset, or the server's defaults.
QUALITIES: dict[str, Preset | None] = {
    "auto": None, "standard": None, "medium": None, "low": "fast",
    "high": "paper", "hd": "paper", "xhigh": "paper", "max": "paper",
}  # fmt: skip

# Not a client's to choose: how large a picture may be is the server's own limit.
OWN = tuple(name for name in FIELDS if name != "max_pixels")

_JSON = {bool: "boolean", int: "integer", float: "number", str: "string"}


def option_schema(name: str) -> dict[str, Any]:
    """One of our own options: its type, range, choices and help text from bld.options."""
    option = FIELDS[name]
    schema: dict[str, Any] = {"type": _JSON[kind_of(name)], "description": option.metadata["help"]}
    choices = get_args(option.type)
    if choices and all(isinstance(choice, str) for choice in choices):
        schema["enum"] = list(choices)
    for bound, low_or_high in (("minimum", "low"), ("maximum", "high")):
        if option.metadata[low_or_high] is not None:
            schema[bound] = option.metadata[low_or_high]
    if option.default is not None:
        schema["default"] = option.default
    return schema


def _choice(default: str, choices: tuple[str, ...], description: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(choices), "default": default, "description": description}


OPENAI: dict[str, dict[str, Any]] = {
    "prompt": {
        "type": "string", "minLength": 1, "maxLength": MAX_PROMPT,
        "description": "what to draw where the mask is transparent",
    },
    "model": {
        "type": "string", "description": "one of GET /v1/models; the server's first if left out",
    },
    "n": {
        "type": "integer", "minimum": 1, "maximum": 10, "default": 1,
        "description": "how many pictures to return, the best first; `candidates` says how many they are "
        "chosen from",
    },
    "size": {
        "type": "string", "pattern": r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$", "default": AUTO,
        "description": "auto: the photograph's own. WIDTHxHEIGHT of the same proportions scales the result; "
        "then the background is scaled too",
    },
    "response_format": _choice("b64_json", ("b64_json", "url"), "the pictures themselves, or where they are"),
    "output_format": _choice("png", FORMATS, "png is the one that keeps every pixel of the background"),
    "output_compression": {
        "type": "integer", "minimum": 0, "maximum": 100, "default": 100,
        "description": "quality of jpeg and webp",
    },
    "background": _choice(
        AUTO, (AUTO, "opaque", "transparent"),
        "auto: the photograph's own alpha, if it has any; opaque drops it; transparent wants it to be there",
    ),
    "quality": _choice(
        AUTO, tuple(QUALITIES),
        "low: the preset fast; high, hd, xhigh, max: the preset paper; else the defaults. Single options go "
        "on top",
    ),
    "user": {"type": "string", "maxLength": 256, "description": "edits of several users take turns"},
    "stream": {"type": "boolean", "default": False, "description": "answer by server-sent events"},
    "partial_images": {
        "type": "integer", "minimum": 0, "maximum": 3, "default": 0,
        "description": "previews to send on the way, with `stream`",
    },
}  # fmt: skip

_FILE = {"type": "string", "format": "binary"}
FILES: dict[str, dict[str, Any]] = {
    "image": {**_FILE, "description": "the photograph: PNG, JPEG, WebP, TIFF, ..."},
    "image[]": {**_FILE, "description": "the same, as clients that have a list of one send it"},
    "mask": {
        **_FILE,
        "description": "PNG of the photograph's size, edited where it is transparent (alpha 0); if left out, "
        "the photograph's own alpha is the mask",
    },
}

FORM = {**FILES, **OPENAI, **{name: option_schema(name) for name in OWN}}
FORM["mask_mode"] = {
    **FORM["mask_mode"],
    "default": "transparency",
    "description": FORM["mask_mode"]["description"] + "; here OpenAI's rule unless said",
}
