"""From what was asked to what will be done: everything about an edit that is decided before it runs."""

from dataclasses import dataclass, replace
from textwrap import shorten

import numpy as np
import torch

from bld import masks
from bld.errors import InvalidInput
from bld.images import (
    Photograph,
    Source,
    open_photograph,
    read_mask,
    resize_mask,
    resize_pixels,
    seen,
    to_tensor,
)
from bld.masks import Crop, FloatArray
from bld.models.base import LatentModel
from bld.options import EditOptions, resolve

BATCH_CELLS = 4 * 64 * 64  # latent cells denoised together: four pictures of 512 px
MOST_QUOTED = 200  # characters of a prompt, in a message
HIDDEN = "the photograph is transparent within the mask, and keeps its alpha: there the edit does not show"
FAINT = 0.01  # of a mask: less than 3 of 255 grey levels from black, or from white


@dataclass(frozen=True, eq=False)
class Task:
    """A checked request: what to edit, where, and with which choices."""

    photograph: Photograph
    mask: FloatArray
    crop: Crop
    grid: tuple[int, int]
    prompt: str
    options: EditOptions
    notes: tuple[str, ...]

    def x(self) -> torch.Tensor:
        """What the model sees: the crop in sRGB at the model's size, 1 3 h w in [-1, 1]."""
        return to_tensor(seen(self.photograph, self.crop.box.slices, self.crop.size))

    def seen_mask(self) -> FloatArray:
        """The mask at the size that the model sees, h w: of each pixel, the share that may change."""
        return resize_pixels((self.mask[self.crop.box.slices] > 0).astype(np.float32), self.crop.size)

    @property
    def seeds(self) -> list[int]:
        """Candidate i has seed + i, so that any one can be made again alone."""
        if self.options.seed is None:
            raise ValueError("options must be resolved")
        return [self.options.seed + i for i in range(self.options.candidates)]

    @property
    def batch_size(self) -> int:
        """How many candidates are denoised together."""
        if self.options.batch_size is None:
            raise ValueError("options must be resolved")
        return self.options.batch_size

    def m_latent(self, steps: int) -> list[FloatArray]:
        """The latent mask of every step."""
        mask = self.mask[self.crop.box.slices]
        if self.options.soft_mask:
            return masks.soft_schedule(mask, self.grid, steps)
        m_latent = masks.latent_mask(mask, self.grid)
        return masks.shrink_schedule(m_latent, steps) if self.options.shrink else [m_latent] * steps


def check(
    model: LatentModel, image: Source | Photograph, mask: Source, prompt: str, options: EditOptions
) -> Task:
    """Read and check everything, so that whatever is wrong is said before the model runs.

    Raises InvalidInput for whatever cannot be edited as asked.
    """
    prompt, prompt_notes = _checked_prompt(model, prompt, options)
    photograph = open_photograph(image, max_pixels=options.max_pixels)
    values, mask_notes = _read_mask(mask, photograph.size, options)
    soft = masks.is_soft(values) if options.soft_mask is None else options.soft_mask
    if soft and options.shrink:
        raise InvalidInput(
            "--shrink is for hard masks, and this one has its own schedule; try --no-soft-mask"
        )
    edited, note = _edited(values, soft=soft)
    crop = masks.context_box(
        masks.mask_box((edited > 0).astype(np.float32)),
        photograph.size,
        native=model.native_size,
        multiple=model.multiple,
        context=options.context,
        min_context=options.context_pixels,
        whole=model.whole,
        max_aspect=model.max_aspect,
    )
    factor = model.latent_factor
    grid = (crop.size[0] // factor, crop.size[1] // factor)
    half_a_cell = max(1, round(factor / 2 * crop.box.height / crop.size[0]))
    resolved = resolve(
        options,
        steps=model.steps,
        guidance_scale=model.guidance_scale,
        shrink=not soft and masks.is_thin(masks.latent_mask(edited[crop.box.slices], grid)),
        soft_mask=soft,
        feather=half_a_cell,
        batch_size=min(max(4, BATCH_CELLS // (grid[0] * grid[1])), 16),
    )
    hidden = photograph.alpha is not None and bool((photograph.alpha[edited > 0] == 0).any())
    told = [*note, *[HIDDEN] * hidden, *_unguided(model, resolved)]
    notes = (*prompt_notes, *photograph.notes, *mask_notes, *told)
    return Task(photograph, edited, crop, grid, prompt, resolved, notes)


def _checked_prompt(model: LatentModel, prompt: str, options: EditOptions) -> tuple[str, list[str]]:
    if not prompt.strip():
        raise InvalidInput("the prompt is empty: say what to draw inside the mask")
    notes = []
    for what, text in (("prompt", prompt), ("negative prompt", options.negative_prompt)):
        cut = excess(model, text)
        if cut and not options.truncate_prompt:
            raise InvalidInput(too_long(model, what, cut))
        if cut:
            notes.append(f"the {what} was cut before {cut!r}")
    return prompt, notes


def _unguided(model: LatentModel, options: EditOptions) -> list[str]:
    """What is to be said where guidance, or a negative prompt, was asked for and has no effect."""
    if model.guides(options):
        return []
    unheeded = f"{model.name} heeds no negative prompt"
    if model.guides(replace(options, guidance_start=0.0, guidance_end=1.0)):
        asked = f"--guidance-start {options.guidance_start} and --guidance-end {options.guidance_end}"
        return [f"guidance acts in no step, and {unheeded}: none lies between {asked}"]
    return [f"{unheeded} at --guidance-scale {options.guidance_scale}"] if options.negative_prompt else []


def excess(model: LatentModel, text: str) -> str:
    """The end of a text that the model would not read, as messages quote it; "" if it reads all of it.

    Raises InvalidInput for what is no text: half of a surrogate pair, a byte that was not decoded.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{text!a} is no text: give it in UTF-8") from error
    return shorten(model.excess(text), MOST_QUOTED, placeholder=" ...")


def too_long(model: LatentModel, what: str, cut: str) -> str:
    """The message that refuses a text of which `cut` would not be read."""
    return (
        f"the {what} is longer than {model.name} reads: {cut!r} would be cut; "
        "shorten it or allow that with --truncate-prompt"
    )


def _read_mask(source: Source, size: tuple[int, int], options: EditOptions) -> tuple[FloatArray, list[str]]:
    """The mask at the photograph's size, in [0, 1], and the notes on how it was read."""
    given = read_mask(source, mode=options.mask_mode, max_pixels=options.max_pixels)
    values, notes = given.values, [given.note]
    if values.shape != size and options.resize_mask:
        notes.append(f"mask resized from {values.shape[1]}x{values.shape[0]} to {size[1]}x{size[0]}")
        values = resize_mask(values, size)
    masks.check_same_size(size, values.shape)
    return masks.invert(values) if options.invert_mask else values, notes


def _edited(values: FloatArray, *, soft: bool) -> tuple[FloatArray, list[str]]:
    """The mask as it is edited by: its greys, or 0 and 1. Raises InvalidInput if it edits nothing."""
    if soft:
        faint = (values > 0) & (values < FAINT)
        edited = np.where(faint, np.float32(0), values)
        masks.require_edit((edited > 0).astype(np.float32))
        notes = ["grey values of the mask begin the edit later"]
        return edited, [
            *notes,
            f"what is fainter in it than {FAINT:.0%} is not edited",
        ] if faint.any() else notes
    edited = masks.binarise(values)
    masks.require_edit(edited)
    grey = np.any((values > FAINT) & (values < 1 - FAINT))
    return edited, ["grey values of the mask were cut at one half"] if grey else []
