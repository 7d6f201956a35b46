"""Blended Diffusion (Avrahami, Lischinski and Fried 2022), and local CLIP-guided diffusion beside it.

An unconditional diffusion model in pixel space is pulled towards the prompt by CLIP's gradient. The first
blends the photograph back in after every step, as its algorithm 2 does; the second has a loss for the
background in its place. Symbols are that paper's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from bld.baselines.diffusion import (
    Level,
    clean,
    even,
    ladder,
    linear_alpha_bar,
    noised,
    posterior,
    predicted,
)
from bld.baselines.guide import ClipGuide
from bld.baselines.painter import Perceptual, Progress, background_distance
from bld.baselines.unet import WEIGHTS, Shape, UNet
from bld.models.networks import loading
from bld.models.weights import read_tensors, sampled
from bld.options import EditOptions, Reconstruction


class PixelModel(Protocol):
    """An unconditional diffusion model over pictures."""

    name: str
    revision: str
    side: int  # px of its square pictures
    alpha_bar: torch.Tensor  # of every training timestep, falling

    def predict(self, x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The noise in x (n 3 side side) at a timestep, and the learned share of the variance, 0 to 1, of
        the way from the posterior's to beta's on a log scale; None where it is fixed. Differentiable.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """The hyperparameters, with the released values. background: weight of the loss outside the mask."""

    steps: int = 100
    skipped: int = 25
    clip: float = 1000.0
    range: float = 50.0
    augmentations: int = 16
    background: float = 0.0
    blended: bool = True


BLENDED_DIFFUSION = Guidance()
LOCAL_CLIP_GUIDED = Guidance(background=1000.0, blended=False)

RELEASED = Shape(
    side=256, channels=256, multiples=(1, 1, 2, 2, 4, 4), blocks=2, attention=(32, 16, 8)
)  # 256x256_diffusion_uncond


def levels(alpha_bar: torch.Tensor, guidance: Guidance) -> list[Level]:
    """The respaced schedule from the first step that is not skipped down to clean."""
    return ladder(alpha_bar, even(guidance.steps))[guidance.skipped :]


def guided_diffusion(
    model: PixelModel,
    guide: ClipGuide,
    x: torch.Tensor,
    m: torch.Tensor,
    prompt: str,
    *,
    seeds: Sequence[int],
    guidance: Guidance = BLENDED_DIFFUSION,
    perceptual: Perceptual | None = None,
) -> Iterator[torch.Tensor]:
    """Yield x_t after each step, as n 3 side side; the last one is the edit.

    x: the photograph, 1 3 side side in [-1, 1]. m: the mask, side side, 1 = edit. seeds: one for each
    candidate, so that none depends on its neighbours. perceptual: for the background's loss (the paper
    takes LPIPS); the squared error alone if there is none.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> torch.Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)

    d = guide.text(prompt)
    ladder = levels(model.alpha_bar, guidance)
    x_t = noised(x, ladder[0].alpha_bar, draw())
    for level in ladder:
        losses = _Losses(guide, d, x, m, guidance, generators, perceptual)
        mean, variance = _guided_mean(model, x_t, level, losses)
        x_fg = mean if level.alpha_bar_next == 1 else mean + variance.sqrt() * draw()
        x_t = x_fg
        if guidance.blended:
            x_bg = noised(x, level.alpha_bar_next, draw())
            x_t = x_fg * m + x_bg * (1 - m)
        yield x_t


def _guided_mean(
    model: PixelModel, x_t: torch.Tensor, level: Level, losses: "_Losses"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of p(x_{t-1} | x_t), moved against the losses' gradient times the variance; and that."""
    a = level.alpha_bar
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_(True)
        eps, share = model.predict(x_t, level.t)
        x_0 = clean(x_t, eps, a)
        (gradient,) = torch.autograd.grad(losses(x_0, x_t, a), x_t)
    mean, variance = posterior(x_t.detach(), x_0.detach(), level, None if share is None else share.detach())
    return mean - variance * gradient, variance


class _Losses:
    """What the gradient is of, summed over candidates, which do not meet in it."""

    def __init__(
        self,
        guide: ClipGuide,
        d: torch.Tensor,
        x: torch.Tensor,
        m: torch.Tensor,
        guidance: Guidance,
        generators: Sequence[torch.Generator],
        perceptual: Perceptual | None,
    ) -> None:
        self.guide, self.d, self.x, self.m, self.guidance = guide, d, x, m, guidance
        self.generators, self.perceptual = generators, perceptual

    def __call__(self, x_0: torch.Tensor, x_t: torch.Tensor, alpha_bar: float) -> torch.Tensor:
        g, f = self.guidance, (1 - alpha_bar) ** 0.5
        x_in = x_0 * f + x_t * (1 - f)
        total = g.range * (x_0 - x_0.clamp(-1, 1)).square().mean((1, 2, 3))
        for i, generator in enumerate(self.generators):
            one = (x_in * self.m)[i : i + 1]
            far = self.guide.distance(one, self.d, augmentations=g.augmentations, generator=generator)
            total = total + g.clip * far * (torch.arange(len(x_0), device=x_0.device) == i)
        if g.background:
            total = total + g.background * background_distance(x_in, self.x, self.m, self.perceptual)
        return total.sum()


class PixelDiffusion:
    """A UNet as a PixelModel."""

    def __init__(self, unet: UNet, *, name: str, revision: str) -> None:
        self.unet, self.name, self.revision = unet, name, revision
        self.side, self.alpha_bar = unet.shape.side, linear_alpha_bar()

    @classmethod
    def load(cls, path: Path, *, pickles: bool = False) -> "PixelDiffusion":
        """This package's network in a folder, or OpenAI's unconditional checkpoint of 256 px as it came.

        Raises ModelUnavailable if it is neither, or not whole.
        """
        if path.is_dir():
            return cls(UNet.from_pretrained(path), name=path.name, revision=sampled(path, [path / WEIGHTS]))
        weights = read_tensors(path, pickles=pickles)
        with loading(path, "network"):
            unet = UNet.filled(RELEASED, weights)
        return cls(unet, name=path.name, revision=sampled(path.parent, [path]))

    def predict(self, x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        output = self.unet(x, torch.full((len(x),), t, device=x.device))
        return predicted(output, x, float(self.alpha_bar[t]))


class GuidedPixels:
    """Blended Diffusion or local CLIP-guided diffusion as a painter."""

    candidates = 64
    guidance_scale = 1.0  # it has none: CLIP's weight is its own

    def __init__(
        self, model: PixelModel, guide: ClipGuide, guidance: Guidance, perceptual: Perceptual | None = None
    ) -> None:
        self.model, self.guide, self.guidance, self.perceptual = model, guide, guidance, perceptual
        self.name = "blended-diffusion" if guidance.blended else "local-clip"
        self.reconstruct: Reconstruction = "stitch" if guidance.blended else "none"
        self.side, self.revision, self.steps = model.side, model.revision, guidance.steps
        self.excess = guide.excess

    def passes(self, steps: int) -> int:
        return steps - self._skipped(steps)

    def _skipped(self, steps: int) -> int:
        """The share that its authors skip, of so many steps."""
        return steps * self.guidance.skipped // self.guidance.steps

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
        steps = options.steps or self.steps
        guidance = replace(self.guidance, steps=steps, skipped=self._skipped(steps))
        made = guided_diffusion(
            self.model, self.guide, x, m, prompt, seeds=seeds, guidance=guidance, perceptual=self.perceptual
        )
        for done, x_t in enumerate(made, start=1):  # noqa: B007
            progress(done)
        return x_t
