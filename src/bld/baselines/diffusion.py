"""Diffusion in pixel space, as guided-diffusion and GLIDE step: schedules, and p(x_{t-1} | x_t).

Ho et al. 2020; Nichol and Dhariwal 2021 (learned variances, the cosine schedule, respacing).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

TIMESTEPS = 1000  # of training


def linear_alpha_bar() -> torch.Tensor:
    """alpha-bar of every training timestep, for betas that rise evenly from 0.0001 to 0.02."""
    return (1 - torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)).cumprod(0).float()


def cosine_alpha_bar() -> torch.Tensor:
    """alpha-bar of every training timestep of the cosine schedule; no beta is over 0.999."""
    share = torch.arange(TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
    at = torch.cos((share + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - (1 - at[1:] / at[:-1]).clamp(max=0.999)).cumprod(0).float()


class Level(NamedTuple):
    """One step's noise levels: of x_t, and of x_{t-1}. t: the training timestep."""

    t: int
    alpha_bar: float
    alpha_bar_next: float


def even(steps: int) -> list[int]:
    """So many training timesteps, rising, from the first to the last."""
    spaced: list[int] = torch.linspace(0, TIMESTEPS - 1, steps).round().long().tolist()
    return spaced


def fast27() -> list[int]:
    """GLIDE's timesteps for its upsampler: 10, 10, 3, 2 and 2 of each fifth; the noisiest is 997."""
    fifth = TIMESTEPS // 5
    spaced = [
        start * fifth + round(i * (fifth - 1) / (count - 1))
        for start, count in enumerate((10, 10, 3, 2, 2))
        for i in range(count)
    ]
    return [*spaced[:-1], TIMESTEPS - 3]


def ladder(alpha_bar: torch.Tensor, timesteps: Sequence[int]) -> list[Level]:
    """The levels of rising timesteps, from the noisiest down to clean."""
    values = [1.0, *(float(alpha_bar[t]) for t in timesteps)]
    return [Level(t, values[i + 1], values[i]) for i, t in enumerate(timesteps)][::-1]


def noised(x: torch.Tensor, alpha_bar: float, eps: torch.Tensor) -> torch.Tensor:
    """q(x_t | x): the picture at a noise level."""
    x_t: torch.Tensor = alpha_bar**0.5 * x + (1 - alpha_bar) ** 0.5 * eps
    return x_t


def clean(x_t: torch.Tensor, eps: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """The picture that x_t is a noising of, by that noise."""
    x_0: torch.Tensor = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return x_0


def posterior(
    x_t: torch.Tensor, x_0: torch.Tensor, level: Level, share: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of p(x_{t-1} | x_t, x_0).

    share: how far the variance is from the posterior's, 0, to beta's, 1, on a log scale; None is 0.
    """
    _, a, a_next = level
    beta = 1 - a / a_next
    mean = (a_next**0.5 * beta * x_0 + (1 - beta) ** 0.5 * (1 - a_next) * x_t) / (1 - a)
    variance = torch.tensor(beta * (1 - a_next) / (1 - a)).clamp(min=1e-20)
    if share is not None and a_next < 1:
        variance = beta**share * variance ** (1 - share)
    return mean, variance


Prediction = tuple[torch.Tensor, torch.Tensor | None]
"""The noise in x_t, and the share of variance as `posterior` takes it."""


def predicted(
    output: torch.Tensor, x_t: torch.Tensor, alpha_bar: float, guess: torch.Tensor | float = 0.0
) -> Prediction:
    """The noise in x_t, and the share of variance, from what a network said of it.

    Twice as many channels as x_t has are the noise and the share, -1 to 1 (the published networks). As many
    are the clean picture, beside a guess of it if there is one (the small networks of this package: a short
    training gets that right first, where noise that is wrong by a little stays in the picture).
    """
    if output.shape[1] == x_t.shape[1]:
        return (x_t - alpha_bar**0.5 * (guess + output)) / (1 - alpha_bar) ** 0.5, None
    eps, share = output.chunk(2, 1)
    return eps, (share + 1) / 2
