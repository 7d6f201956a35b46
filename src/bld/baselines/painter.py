"""The seam between the editor and the systems that the paper compares with: all paint pixels.

A painter gets the crop that the editor cut, at its own size, and the mask; what comes of it is ranked, put
back into the photograph and measured by the editor like any edit.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from bld.editor import Editor, Latents, Preview, Stages
from bld.models.base import Prompts, Trajectory
from bld.options import EditOptions, Reconstruction
from bld.rank import Ranker
from bld.sample import Dropped, batches
from bld.task import Task

Progress = Callable[[int], None]
"""Called with the number of steps that are done."""

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""How different two batches of pictures in [-1, 1] look: n, differentiable."""


def background_distance(
    y: torch.Tensor, x: torch.Tensor, m: torch.Tensor, perceptual: Perceptual | None
) -> torch.Tensor:
    """D_bg: half the squared error outside the mask, half the perceptual distance; n.

    Without a perceptual distance (the paper takes LPIPS) it is the squared error alone.
    """
    outside, kept = y * (1 - m), x * (1 - m)
    squares = (outside - kept).square().mean((1, 2, 3))
    return squares if perceptual is None else (squares + perceptual(outside, kept)) / 2


class Painter(Protocol):
    """Another way from a crop, a mask and a prompt to pictures."""

    name: str
    revision: str  # of its weights
    side: int  # px, of the pictures it was trained on; theirs are multiples of it
    steps: int  # unless told otherwise
    guidance_scale: float  # likewise
    candidates: int  # that its authors make, or the paper for them
    reconstruct: Reconstruction  # what it does with its background

    def excess(self, prompt: str) -> str:
        """The end of the prompt that it does not read."""
        ...

    def passes(self, steps: int) -> int:
        """How often it reports progress, of so many steps."""
        ...

    def paint(
        self,
        x: torch.Tensor,
        m: torch.Tensor,
        prompt: str,
        *,
        seeds: Sequence[int],
        options: EditOptions,
        progress: Progress,
    ) -> torch.Tensor:
        """n 3 h w in [-1, 1], a picture for each seed, which alone decides it.

        x: 1 3 h w in [-1, 1]. m: h w, 1 = edit. options: resolved; of them the steps and the guidance scale.
        """
        ...


class Canvas:
    """A painter as the editor sees a model: its latents are the pixels."""

    latent_factor = 1
    max_aspect = 4
    whole = True

    def __init__(self, painter: Painter) -> None:
        self.name, self.revision = painter.name, painter.revision
        self.native_size = self.multiple = painter.side
        self.steps, self.guidance_scale = painter.steps, painter.guidance_scale
        self.excess = painter.excess

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z

    def decoder(self) -> torch.nn.Sequential:
        return torch.nn.Sequential()

    def guides(self, options: EditOptions) -> bool:
        return False

    def trajectory(self, prompt: Prompts, options: EditOptions, grid: tuple[int, int]) -> Trajectory:
        return ()  # it has none that could be blended


class BaselineEditor(Editor):
    """The editor with a painter in the place of the method."""

    def __init__(
        self, painter: Painter, ranker: Ranker | None, *, device: torch.device | str = "cpu"
    ) -> None:
        """device: where the painter's networks are."""
        super().__init__(Canvas(painter), ranker)
        self.painter, self.device = painter, device

    def _blend(
        self, task: Task, z_init: torch.Tensor, stages: Stages, preview: Callable[[Preview], None] | None
    ) -> tuple[Latents, tuple[Dropped, ...]]:
        """The pictures of every candidate, a micro-batch at a time."""
        options, seeds = task.options, task.seeds
        some = [seeds[part] for part in batches(len(seeds), task.batch_size)]
        x = z_init.to(self.device)
        m = (torch.from_numpy(task.seen_mask()) > 0).to(x)
        passes, made = self.painter.passes(options.steps or self.painter.steps), []
        with stages.stage("paint", passes * len(some)) as done:
            for number, batch in enumerate(some):
                made.append(
                    self.painter.paint(
                        x, m, task.prompt, seeds=batch, options=options,
                        progress=lambda step, before=passes * number: done(before + step),  # type: ignore[misc]
                    )
                )  # fmt: skip
        return Latents(z_init, torch.cat(made).to(z_init), tuple(seeds)), ()
