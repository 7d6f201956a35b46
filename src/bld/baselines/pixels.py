"""Blended Diffusion (Avrahami, Lischinski and Fried 2022), and local CLIP-guided diffusion beside it.

An unconditional diffusion model in pixel space is pulled towards the prompt by CLIP's gradient. The first
blends the photograph back in after every step, as its algorithm 2 does; the second has a loss for the
background in its place. Symbols are that paper's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from bld.baselines.guide import ClipGuide

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""How different two batches of pictures in [-1, 1] look: n, differentiable."""


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


class Level(NamedTuple):
    """One step's noise levels: of x_t, and of x_{t-1}. t: the training timestep."""

    t: int
    alpha_bar: float
    alpha_bar_next: float


def levels(alpha_bar: torch.Tensor, guidance: Guidance) -> list[Level]:
    """The respaced schedule from the first step that is not skipped down to clean."""
    spaced = torch.linspace(0, len(alpha_bar) - 1, guidance.steps).round().long().tolist()
    values = [1.0, *(float(alpha_bar[t]) for t in spaced)]
    ladder = [Level(t, values[i + 1], values[i]) for i, t in enumerate(spaced)]
    return ladder[::-1][guidance.skipped :]


def noised(x: torch.Tensor, alpha_bar: float, eps: torch.Tensor) -> torch.Tensor:
    """q(x_t | x): the picture at a noise level."""
    x_t: torch.Tensor = alpha_bar**0.5 * x + (1 - alpha_bar) ** 0.5 * eps
    return x_t


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
    _, a, a_next = level
    beta = 1 - a / a_next
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_(True)
        eps, share = model.predict(x_t, level.t)
        x_0 = (x_t - (1 - a) ** 0.5 * eps) / a**0.5
        (gradient,) = torch.autograd.grad(losses(x_0, x_t, a), x_t)
    x_0, x_t = x_0.detach(), x_t.detach()
    mean = (a_next**0.5 * beta * x_0 + (1 - beta) ** 0.5 * (1 - a_next) * x_t) / (1 - a)
    posterior = torch.tensor(beta * (1 - a_next) / (1 - a)).clamp(min=1e-20)
    learned = share is not None and a_next < 1
    variance = posterior if not learned else (beta**share * posterior ** (1 - share)).detach()  # type: ignore[operator]
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
            total = total + g.clip * far * (torch.arange(len(x_0)) == i)
        if g.background:
            total = total + g.background * self._background(x_in)
        return total.sum()

    def _background(self, x_in: torch.Tensor) -> torch.Tensor:
        """D_bg: half the squared error outside the mask, half the perceptual distance."""
        outside, kept = x_in * (1 - self.m), self.x * (1 - self.m)
        squares = (outside - kept).square().mean((1, 2, 3))
        return squares if self.perceptual is None else (squares + self.perceptual(outside, kept)) / 2
