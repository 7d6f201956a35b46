"""From a multipart body to an order: every field checked, before a model is asked for anything."""

import re
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile

from bld.apps.server.fields import AUTO, FILES, FORM, OPENAI, OWN, QUALITIES
from bld.apps.server.problems import ApiError
from bld.apps.typed import short, typed
from bld.options import PRESETS, EditOptions

MISSING = "missing_required_parameter"
KINDS: dict[str, type] = {"string": str, "boolean": bool, "integer": int, "number": float}


@dataclass(frozen=True, kw_only=True)
class Order:
    """A checked request. size: height and width of the results, None for the photograph's own.

    mask: None for the photograph's own alpha. notes: what was ignored.
    """

    image: bytes
    mask: bytes | None
    prompt: str
    model: str | None
    n: int
    options: EditOptions
    size: tuple[int, int] | None
    output_format: str
    output_compression: int
    background: str
    quality: str
    as_url: bool
    stream: bool
    partial_images: int
    user: str
    notes: tuple[str, ...]


async def read_order(form: FormData, *, max_pixels: int) -> Order:
    """Check a form.

    Raises ApiError with the field that is wrong, what came and what was expected, and InvalidInput for
    options that do not go together.
    """
    given = {name: value for name, value in form.multi_items() if name in FORM}
    for name in given:
        if len(form.getlist(name)) > 1:
            many = "one photograph is edited at a time" if name.startswith("image") else "give it once"
            raise _refused(name, f"came {len(form.getlist(name))} times; {many}")
    files = {name: await _file(name, given.pop(name)) for name in FILES if name in given}
    if "image" in files and "image[]" in files:
        raise _refused("image", "came as image and as image[]; one photograph is edited at a time")
    image = files.get("image") or files.get("image[]")
    if image is None:
        raise _refused("image", "is missing; send the photograph as a file", MISSING)
    if not given.get("prompt"):
        raise _refused("prompt", "is missing; say what to draw", MISSING)
    values = {name: _value(name, text) for name, text in given.items()}
    asked: dict[str, Any] = {name: values.get(name, schema.get("default")) for name, schema in OPENAI.items()}
    own = {name: values[name] for name in OWN if name in values}
    if not asked["stream"] and asked["partial_images"]:
        raise _refused("partial_images", "come with stream=true alone")
    if asked["stream"] and asked["response_format"] == "url":
        raise _refused("response_format", "is url, and a stream has the pictures in it; use b64_json")
    unknown = sorted({name for name, _ in form.multi_items()} - set(FORM))
    return Order(
        image=image,
        mask=files.get("mask"),
        prompt=asked["prompt"],
        model=asked["model"],
        n=asked["n"],
        options=_options(asked, own, max_pixels),
        size=_size(asked["size"], max_pixels),
        output_format=asked["output_format"],
        output_compression=asked["output_compression"],
        background=asked["background"],
        quality=asked["quality"],
        as_url=asked["response_format"] == "url",
        stream=asked["stream"],
        partial_images=asked["partial_images"],
        user=asked["user"] or "",
        notes=tuple(f"unknown field, ignored: {name[:64]}" for name in unknown),
    )


async def _file(name: str, value: UploadFile | str) -> bytes:
    if isinstance(value, str):
        raise _refused(name, "is text; expected a file")
    content = await value.read()
    if not content:
        raise _refused(name, "is empty (0 bytes); send the file again")
    return content


def _options(asked: dict[str, Any], own: dict[str, Any], max_pixels: int) -> EditOptions:
    """The quality's preset, our own fields on top, and at least as many candidates as are returned."""
    preset = QUALITIES[asked["quality"]]
    options = {
        "mask_mode": FORM["mask_mode"]["default"],
        **(PRESETS[preset] if preset else {}),
        **own,
        "max_pixels": max_pixels,
    }
    if asked["n"] > options.get("candidates", EditOptions.candidates):
        if "candidates" in own:
            raise _refused("candidates", f"is {own['candidates']}, less than n, which is {asked['n']}")
        options["candidates"] = asked["n"]
    if asked["n"] > options.get("finalists", asked["n"]):
        if "finalists" in own:
            raise _refused("finalists", f"is {own['finalists']}, less than n, which is {asked['n']}")
        options["finalists"] = asked["n"]
    return EditOptions(**options)


def _size(text: str, max_pixels: int) -> tuple[int, int] | None:
    if text == AUTO:
        return None
    width, height = map(int, text.split("x"))
    if width * height > max_pixels:
        raise _refused("size", f"is {text}, {width * height} pixels; the server takes up to {max_pixels}")
    return height, width


def _value(name: str, text: Any) -> Any:
    """A field's text as its schema's type. Raises ApiError unless the schema holds."""
    schema = FORM[name]
    if not isinstance(text, str):
        raise _refused(name, "is a file; expected text")
    value = _of_type(name, text, schema["type"])
    if isinstance(value, str):
        longest = schema.get("maxLength")
        if longest and len(value) > longest:
            raise _refused(
                name, f"has {len(value)} characters; expected {longest} at most", "string_above_max_length"
            )
        if "pattern" in schema and not re.fullmatch(schema["pattern"], value):
            raise _refused(name, f"is {short(value)}; expected auto or WIDTHxHEIGHT, such as 1024x768")
    if "enum" in schema and value not in schema["enum"]:
        raise _refused(name, f"is {short(text)}; expected one of {', '.join(schema['enum'])}")
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (value < low or (high is not None and value > high)):
        span = f"at least {low}" if high is None else f"{low} to {high}"
        raise _refused(name, f"is {short(text)}; expected {span}")
    return value


def _of_type(name: str, text: str, kind: str) -> Any:
    try:
        return typed(text, KINDS[kind])
    except ValueError as error:
        raise _refused(name, f"is {short(text)}; expected {error}") from error


def _refused(name: str, reason: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, code, f"{name} {reason}", param=name)
