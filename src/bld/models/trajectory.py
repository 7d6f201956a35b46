"""From what a network predicts to the steps of a trajectory."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from bld.models.base import CLEAN, Level, Step

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


def clean_and_noise(
    output: torch.Tensor, z: torch.Tensor, level: Level, prediction: Prediction
) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's output as its guess of (z_0, eps), such that z = signal * z_0 + sigma * eps."""
    signal, sigma = level
    if prediction == "v_prediction":
        return signal * z - sigma * output, sigma * z + signal * output
    if prediction == "sample":
        return output, (z - signal * output) / sigma
    if prediction == "flow":  # the velocity eps - z_0, where signal and sigma add up to one
        return z - sigma * output, z + signal * output
    return (z - sigma * output) / signal, output


def start(steps: int, strength: float) -> int:
    """How many of `steps` to skip for a strength in (0, 1]: the nearest whole number, at least one runs.

    The one rule for every family; diffusers' own pipelines round strength in several ways.
    """
    return steps - max(1, int(steps * strength + 0.5))


def deterministic(
    levels: Sequence[Level],
    timesteps: Sequence[float],
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    prediction: Prediction,
) -> list[Step]:
    """Guess z_0 and eps, go to the next level with them: DDIM (Song et al. 2021, eta = 0), and Euler's
    step along the velocity of a flow-matching model, which is the same.

    levels[i] belongs to timesteps[i]; the last step ends on the clean level, whatever the schedule's
    own last alpha is (for Stable Diffusion 1 it is 0.9991 in place of 1).
    """

    def step(level_in: Level, level_out: Level, timestep: float) -> Step:
        def denoise(z: torch.Tensor) -> torch.Tensor:
            z_0, eps = clean_and_noise(predict(z, timestep), z, level_in, prediction)
            return level_out.noise(z_0, eps)

        return Step(level_in, level_out, denoise)

    return [
        step(level_in, level_out, timestep)
        for level_in, level_out, timestep in zip(levels, [*levels[1:], CLEAN], timesteps, strict=True)
    ]


def consistency(
    levels: Sequence[Level],
    timesteps: Sequence[float],
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    prediction: Prediction,
    boundary: Callable[[float], tuple[float, float]] = lambda timestep: (0.0, 1.0),
) -> list[Step]:
    """Every step ends clean, on the model's guess of z_0; the next begins with that guess, noised anew.

    For models distilled to jump (Luo et al. 2023, algorithm 4; Sauer et al. 2023). boundary: how much of z
    and of the guess make the answer at a timestep, (c_skip, c_out).
    """

    def step(level_in: Level, timestep: float) -> Step:
        def denoise(z: torch.Tensor) -> torch.Tensor:
            z_0, _ = clean_and_noise(predict(z, timestep), z, level_in, prediction)
            c_skip, c_out = boundary(timestep)
            return c_skip * z + c_out * z_0

        return Step(level_in, CLEAN, denoise)

    return [step(level, timestep) for level, timestep in zip(levels, timesteps, strict=True)]
