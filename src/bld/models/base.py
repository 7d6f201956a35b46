"""The seam between the method and the models: levels, steps, and what a latent model offers.

A family turns its network into a `Trajectory`; the blending loop never asks what the network predicts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from bld.options import EditOptions


class Level(NamedTuple):
    """A noise level: `signal * z + sigma * eps`. Covers DDIM-like and flow-matching models alike."""

    signal: float
    sigma: float

    def noise(self, z: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """z noised to this level in one step; exactly z at the clean level (1, 0)."""
        return self.signal * z + self.sigma * eps


CLEAN = Level(1.0, 0.0)


@dataclass
class Memory:
    """What a multistep solver keeps of the steps before: the model's last guesses of the clean latents.

    guesses: three at most, b c h w each, the newest last. They belong to the rows of a batch: whoever goes on
    with some of them alone gives the memory theirs.
    """

    guesses: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class Step:
    """One denoising step: `denoise` takes z (b c h w) on `level_in` to z on `level_out`.

    Where a step begins on another level than the one before it ended on, z is noised to it anew: a
    consistency model ends every step clean. memory: what all steps of a multistep solver share.
    """

    level_in: Level
    level_out: Level
    denoise: Callable[[torch.Tensor], torch.Tensor]
    memory: Memory | None = None

    def guess(self, z_in: torch.Tensor, z_out: torch.Tensor) -> torch.Tensor:
        """The clean latent that a deterministic step went towards: its ends are noisings of it by one eps."""
        (signal_in, sigma_in), (signal_out, sigma_out) = self.level_in, self.level_out
        return (sigma_in * z_out - sigma_out * z_in) / (signal_out * sigma_in - signal_in * sigma_out)


Trajectory = Sequence[Step]

Prompts = str | tuple[str, ...]
"""One prompt for all latents of a batch, or one for each of them."""


class LatentModel(Protocol):
    """A text-to-image latent diffusion model, loaded and ready. Read-only during an edit."""

    name: str  # as the user gave it
    revision: str  # of the weights: a hub commit or a digest
    native_size: int  # side of the pictures it was trained on, px
    latent_factor: int  # pixels per latent cell, along one side
    multiple: int  # sides of a picture must divide by this, px
    max_aspect: int  # its longest side, in native sizes: longer crops are squeezed into that
    whole: bool  # whether a photograph of its native size is worked on whole, not in a crop as others are
    guidance_scale: float  # the value it is at its best with
    steps: int  # likewise

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """E(x): image b 3 h w in [-1, 1] to latents b c h/f w/f (posterior mean, unit scale)."""
        ...

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """D(z): latents to images b 3 h w, about [-1, 1], not clamped."""
        ...

    def decoder(self) -> torch.nn.Sequential:
        """A copy of D in float32 that may be tuned, from latents as `decode` takes them to its images: a
        chain of blocks, from coarse to fine.
        """
        ...

    def excess(self, prompt: str) -> str:
        """The end of the prompt that the model would not read; "" if it reads all of it."""
        ...

    def guides(self, options: EditOptions) -> bool:
        """Whether any step is led away from the negative prompt. `options` must be resolved."""
        ...

    def trajectory(self, prompt: Prompts, options: EditOptions, grid: tuple[int, int]) -> Trajectory:
        """The steps from the start level that `options.strength` names down to clean; a fresh list
        per call, guidance included. `options` must be resolved; grid: h w of the latents.
        """
        ...
