"""The editor: photograph, mask and prompt in, edited photographs out."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from bld import masks
from bld.blend import blend
from bld.errors import InvalidInput
from bld.images import (
    Photograph,
    Source,
    from_tensor,
    open_photograph,
    read_mask,
    resize_mask,
    resize_pixels,
    to_srgb,
    to_tensor,
)
from bld.masks import Crop, FloatArray
from bld.models.base import LatentModel
from bld.models.load import load_model
from bld.options import DType, EditOptions, resolve
from bld.reconstruct import BackgroundError, Scene, background_error, reconstruct

if TYPE_CHECKING:
    from PIL.Image import Image

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as an edit goes on. An exception it raises ends the edit."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One edited photograph, the seed that makes it, and what it did to the background."""

    photograph: Photograph
    seed: int
    background: BackgroundError

    @property
    def image(self) -> "Image":
        """The picture for Pillow, in 8 bits; profile and alpha included."""
        from bld.images import to_pil

        return to_pil(self.photograph)


@dataclass(frozen=True, eq=False)
class EditResult:
    """All candidates, best first, with everything it takes to make them again.

    Without a ranker the order is that of the seeds. round_trip: D(E(x)), the photograph after the
    autoencoder alone. notes: what was converted, cut or decided on the way. seconds: per stage.
    """

    candidates: tuple[Candidate, ...]
    prompt: str
    options: EditOptions
    model: str
    revision: str
    photograph: Photograph
    mask: FloatArray
    crop: Crop
    round_trip: Photograph
    notes: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def best(self) -> Candidate:
        return self.candidates[0]


@dataclass(frozen=True, eq=False)
class _Task:
    """A checked request: what to edit, where, and with which choices."""

    photograph: Photograph
    mask: FloatArray
    crop: Crop
    prompt: str
    options: EditOptions
    m_latent: FloatArray
    notes: tuple[str, ...]


@dataclass
class _Stages:
    """Times the stages of an edit and reports how far each is."""

    progress: Progress | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Within it, call the given function with the count that is done."""
        started = time.perf_counter()

        def report(done: int) -> None:
            if self.progress:
                self.progress(name, done, total)

        report(0)
        yield report
        self.seconds[name] = time.perf_counter() - started


class Editor:
    """Edits photographs with one loaded model. Edits do not change it: two may run at once.

    editor = Editor.from_pretrained("mini")
    result = editor.edit("photo.jpg", "mask.png", "a guitar", candidates=8, seed=0)
    result.best.image.save("out.png")
    """

    def __init__(self, model: LatentModel) -> None:
        self.model = model

    @classmethod
    def from_pretrained(cls, name: str, *, device: str = "auto", dtype: DType = "auto") -> Self:
        """Load a model by name, folder or hub id; see `bld.models.load.load_model`."""
        return cls(load_model(name, device=device, dtype=dtype))

    def edit(
        self,
        image: Source,
        mask: Source,
        prompt: str,
        *,
        options: EditOptions | None = None,
        progress: Progress | None = None,
        **changes: Any,
    ) -> EditResult:
        """Edit `image` (path, PIL image or array h w 3) where `mask` is white, as `prompt` says.

        Options come as an `EditOptions` or one by one (candidates=8, seed=0, ...). Raises InvalidInput
        for whatever cannot be edited as asked; nothing is resized, inverted or cut unless an option
        says so, and what was converted is in the result's notes.
        """
        if options is not None and changes:
            raise TypeError("give options=EditOptions(...) or single options, not both")
        task = self._check(image, mask, prompt, options or EditOptions(**changes))
        stages = _Stages(progress)
        with stages.stage("encode", 1) as done:
            z_init = self.model.encode(to_tensor(self._seen(task)))
            done(1)
        latents = self._blend(task, z_init, stages)
        with stages.stage("decode", 1 + len(latents)) as done:
            decoded = []
            for number, z in enumerate([z_init[0], *latents]):
                decoded.append(from_tensor(self.model.decode(z[None]))[0])
                done(number + 1)
        with stages.stage("reconstruct", 1) as done:
            candidates = tuple(
                self._finish(task, picture, seed)
                for picture, seed in zip(decoded[1:], self._seeds(task.options), strict=True)
            )
            round_trip = reconstruct("none", _scene(task, decoded[0]))
            done(1)
        return EditResult(
            candidates=candidates,
            prompt=task.prompt,
            options=task.options,
            model=self.model.name,
            revision=self.model.revision,
            photograph=task.photograph,
            mask=task.mask,
            crop=task.crop,
            round_trip=round_trip,
            notes=task.notes,
            seconds=stages.seconds,
        )

    def _check(self, image: Source, mask: Source, prompt: str, options: EditOptions) -> _Task:
        """Read and check everything, so that whatever is wrong is said before the model runs."""
        prompt, prompt_notes = self._checked_prompt(prompt, options)
        photograph = open_photograph(image, max_pixels=options.max_pixels)
        edited, mask_notes = _read_mask(mask, photograph.size, options)
        crop = masks.context_box(
            masks.mask_box(edited),
            photograph.size,
            native=self.model.native_size,
            multiple=self.model.multiple,
            context=options.context,
            min_context=options.context_pixels,
        )
        factor = self.model.latent_factor
        grid = (crop.size[0] // factor, crop.size[1] // factor)
        m_latent = masks.latent_mask(edited[crop.box.slices], grid)
        half_a_cell = max(1, round(factor / 2 * crop.box.height / crop.size[0]))
        resolved = resolve(
            options,
            guidance_scale=self.model.guidance_scale,
            shrink=masks.is_thin(m_latent),
            feather=half_a_cell,
        )
        notes = (*prompt_notes, *photograph.notes, *mask_notes)
        return _Task(photograph, edited, crop, prompt, resolved, m_latent, notes)

    def _checked_prompt(self, prompt: str, options: EditOptions) -> tuple[str, list[str]]:
        if not prompt.strip():
            raise InvalidInput("the prompt is empty: say what to draw inside the mask")
        notes = []
        for what, text in (("prompt", prompt), ("negative prompt", options.negative_prompt)):
            cut = self.model.excess(text)
            if cut and not options.truncate_prompt:
                raise InvalidInput(
                    f"the {what} is longer than {self.model.name} reads: {cut!r} would be cut; "
                    "shorten it or allow that with --truncate-prompt"
                )
            if cut:
                notes.append(f"the {what} was cut before {cut!r}")
        return prompt, notes

    def _seen(self, task: _Task) -> FloatArray:
        """What the model sees: the crop in sRGB at the model's resolution, h w 3 in [0, 1]."""
        pixels = task.photograph.pixels[task.crop.box.slices]
        return resize_pixels(to_srgb(pixels, task.photograph.icc_profile), task.crop.size)

    def _blend(self, task: _Task, z_init: torch.Tensor, stages: _Stages) -> list[torch.Tensor]:
        """z_0 of every candidate, c h w each, a micro-batch at a time."""
        options, seeds = task.options, self._seeds(task.options)
        latents: list[torch.Tensor] = []
        batches = [seeds[i : i + options.batch_size] for i in range(0, len(seeds), options.batch_size)]
        trajectory = self.model.trajectory(task.prompt, options)
        schedule = (
            masks.shrink_schedule(task.m_latent, len(trajectory))
            if options.shrink
            else [task.m_latent] * len(trajectory)
        )
        m_latent = [torch.from_numpy(m).to(z_init) for m in schedule]
        with stages.stage("blend", len(batches) * len(trajectory)) as done:
            for number, batch in enumerate(batches):
                generators = [torch.Generator().manual_seed(seed) for seed in batch]
                trajectory = self.model.trajectory(task.prompt, options)
                z = z_init
                for step, z in enumerate(blend(trajectory, z_init, m_latent, generators)):  # noqa: B007
                    done(number * len(trajectory) + step + 1)
                latents += list(z)  # the last one
        return latents

    def _finish(self, task: _Task, decoded: FloatArray, seed: int) -> Candidate:
        result = reconstruct(task.options.reconstruct, _scene(task, decoded))
        return Candidate(result, seed, background_error(task.photograph, result, task.mask))

    @staticmethod
    def _seeds(options: EditOptions) -> list[int]:
        """Candidate i has seed + i, so that any one can be made again alone."""
        if options.seed is None:
            raise ValueError("options must be resolved")
        return [options.seed + i for i in range(options.candidates)]


def _scene(task: _Task, decoded: FloatArray) -> Scene:
    if task.options.feather is None:
        raise ValueError("options must be resolved")
    return Scene(task.photograph, task.crop.box, task.mask, decoded, task.options.feather)


def _read_mask(source: Source, size: tuple[int, int], options: EditOptions) -> tuple[FloatArray, list[str]]:
    """The mask at the photograph's size, 0 or 1, and the notes on how it was read."""
    given = read_mask(source, mode=options.mask_mode, max_pixels=options.max_pixels)
    values, notes = given.values, [given.note]
    if values.shape != size and options.resize_mask:
        notes.append(f"mask resized from {values.shape[1]}x{values.shape[0]} to {size[1]}x{size[0]}")
        values = resize_mask(values, size)
    masks.check_same_size(size, values.shape)
    edited = masks.binarise(masks.invert(values) if options.invert_mask else values)
    if np.any((values > 0.01) & (values < 0.99)):
        notes.append("grey values of the mask were cut at one half")
    masks.require_edit(edited)
    return edited, notes
