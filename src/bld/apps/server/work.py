"""One order, done by an editor: the edit, its previews on the way, and the pictures as bytes."""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from bld import png
from bld.apps.server.form import Order
from bld.apps.server.measures import Measures
from bld.editor import Editor, EditResult, Preview
from bld.errors import InvalidInput
from bld.images import Photograph, open_photograph, to_pil
from bld.masks import FloatArray
from bld.task import HIDDEN

HOLES = ("alpha", "transparency")  # ways to read a mask that are meant for a photograph's own alpha
LONGEST = {"jpeg": 65_500, "webp": 16_383}  # px, sides that such a file can have
MAX_DRIFT = 1.0  # px, by which rounding may move a side of an asked size


@dataclass(frozen=True)
class Picture:
    """One returned picture, with what a client may want to know of it.

    background_max_error: None for a file that cannot keep the photograph's pixels.
    """

    content: bytes
    seed: int
    score: float | None
    background_max_error: float | None


@dataclass(frozen=True)
class Partial:
    """A preview on the way."""

    index: int
    content: bytes
    size: tuple[int, int]


@dataclass(frozen=True)
class Finished:
    """An order that is done, the best picture first. size: height and width."""

    pictures: tuple[Picture, ...]
    size: tuple[int, int]
    transparent: bool
    notes: tuple[str, ...]


def perform(
    order: Order,
    editor: Editor,
    measures: Measures,
    check: Callable[[], None],
    tell: Callable[[Partial], None],
) -> Finished:
    """Do an order. `check` is called in every step and may raise; `tell` is given the previews.

    Raises InvalidInput for whatever cannot be edited as asked.
    """
    sent = 0

    def progress(stage: str, done: int, total: int) -> None:
        check()
        if stage == "blend" and done:
            measures.steps.inc()

    def preview(seen: Preview) -> None:
        nonlocal sent
        check()
        due = seen.step * (order.partial_images + 1) // seen.steps
        if sent < min(due, order.partial_images):
            picture = _visible(seen.photograph(), seen.mask)
            tell(Partial(sent, _encoded(picture, order), order.size or picture.size))
            sent += 1

    photograph = open_photograph(order.image, max_pixels=order.options.max_pixels)
    _refuse_early(photograph, order)
    result = editor.edit(
        photograph,
        order.mask if order.mask is not None else order.image,
        order.prompt,
        options=order.options,
        progress=progress,
        preview=preview if order.partial_images else None,
        best=order.n,
    )
    for stage, seconds in result.seconds.items():
        measures.stages.labels(stage).observe(seconds)
    return _finished(order, result)


def _finished(order: Order, result: EditResult) -> Finished:
    """The pictures of an edit, in the files that were asked for."""
    photographs = [_visible(candidate.photograph, result.mask) for candidate in result.candidates]
    size = order.size or photographs[0].size
    scaled = size != photographs[0].size
    kept = order.output_format == "png" and not scaled
    pictures = tuple(
        Picture(_encoded(shown, order), c.seed, c.score, c.fidelity.max_error if kept else None)
        for shown, c in zip(photographs, result.candidates, strict=True)
    )
    transparent = photographs[0].alpha is not None and order.background != "opaque"
    notes = [note for note in result.notes if note != HIDDEN]
    if scaled:
        notes.append(f"result scaled to {size[1]}x{size[0]}")
    if photographs[0].pixels.dtype == np.uint16 and not kept:
        notes.append("16 bits written as 8")
    return Finished(pictures, size, transparent, (*order.notes, *notes))


def _visible(photograph: Photograph, mask: FloatArray) -> Photograph:
    """With what was transparent and has been edited made opaque: a hole is filled, not hidden."""
    alpha = photograph.alpha
    if alpha is None:
        return photograph
    opaque = np.iinfo(alpha.dtype).max
    filled = np.where((mask > 0) & (alpha == 0), opaque, alpha).astype(alpha.dtype)
    return replace(photograph, alpha=None if filled.min() == opaque else filled)


def _refuse_early(photograph: Photograph, order: Order) -> None:
    """Raise InvalidInput for results that cannot be had of a photograph, before it is edited."""
    mode = order.options.mask_mode
    if order.mask is None and photograph.alpha is None:
        raise InvalidInput("mask is missing, and the image has no alpha channel to be one; send a mask")
    if order.mask is None and mode not in HOLES:
        raise InvalidInput(f"mask is missing, which mask_mode {mode} reads; send it, or leave mask_mode out")
    if order.background == "transparent" and photograph.alpha is None:
        raise InvalidInput("background is transparent, but the image is opaque; use background=auto")
    (height, width), (image_height, image_width) = order.size or photograph.size, photograph.size
    longest, most = max(height, width), LONGEST.get(order.output_format)
    if most and longest > most:
        raise InvalidInput(
            f"output_format {order.output_format} holds sides of {most} px at most, and the result has "
            f"{longest}; use png, or a smaller size"
        )
    of_width, of_height = image_height * width / image_width, image_width * height / image_height
    if abs(height - of_width) >= MAX_DRIFT and abs(width - of_height) >= MAX_DRIFT:
        raise InvalidInput(
            f"size {width}x{height} has not the proportions of the image, {image_width}x{image_height}; "
            f"use auto or {width}x{max(1, round(of_width))}"
        )


def _encoded(photograph: Photograph, order: Order) -> bytes:
    """The file that was asked for. Raises InvalidInput for what no such file can hold."""
    if order.background == "opaque":
        photograph = replace(photograph, alpha=None)
    if photograph.alpha is not None and order.output_format == "jpeg":
        raise InvalidInput(
            "output_format jpeg holds no transparency, and the image has some; use png, webp or "
            "background=opaque"
        )
    size = order.size or photograph.size
    if order.output_format == "png" and size == photograph.size:
        return png.encode_png(photograph.pixels, alpha=photograph.alpha, icc_profile=photograph.icc_profile)
    picture = to_pil(photograph)
    if size != photograph.size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(
        file,
        order.output_format,
        quality=order.output_compression,
        icc_profile=photograph.icc_profile,
    )
    return file.getvalue()
