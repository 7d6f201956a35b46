"""From what a network predicts to the steps of a trajectory."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch

from bld.models.base import CLEAN, Level, Memory, Step
from bld.options import Scheduler

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")  # on the levels of DDPM


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


def multistep(
    levels: Sequence[Level],
    timesteps: Sequence[float],
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    prediction: Prediction,
    correct: bool = False,
) -> list[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022): a step goes towards z_0 as the last two guesses extrapolate it.

    The same step as `deterministic` otherwise; its first and its last are that one's. What is remembered
    are the model's guesses and not z, so the background that is put back between two steps does no harm.

    correct: UniPC of second order (Zhao et al. 2023, with B_2), which is the same step from a z that is
    first moved by what the guess made there says of the step before.
    """
    memory = Memory()
    lambdas = [math.log(signal / sigma) if signal else -math.inf for signal, sigma in levels]

    def step(i: int, level_out: Level) -> Step:
        level_in = levels[i]
        ahead = 0.0  # how far to extrapolate, in steps
        if 0 < i < len(levels) - 1:
            ahead = (lambdas[i + 1] - lambdas[i]) / (2 * (lambdas[i] - lambdas[i - 1]))

        def denoise(z: torch.Tensor) -> torch.Tensor:
            z_0, eps = clean_and_noise(predict(z, timesteps[i]), z, level_in, prediction)
            memory.guesses = (*memory.guesses, z_0)[-3:]
            if correct:
                z = z + level_in.signal * correction(lambdas[: i + 1], memory.guesses)
            if ahead and len(memory.guesses) > 1:
                z_0 = z_0 + ahead * (z_0 - memory.guesses[-2])
            if ahead or correct:
                eps = (z - level_in.signal * z_0) / level_in.sigma
            return level_out.noise(z_0, eps)

        return Step(level_in, level_out, denoise, memory)

    return [step(i, level_out) for i, level_out in enumerate([*levels[1:], CLEAN])]


def correction(lambdas: Sequence[float], guesses: Sequence[torch.Tensor]) -> torch.Tensor | float:
    """How far UniPC moves z, as a share of the signal: by what its last step did not know of z_0 yet.

    lambdas: log(signal / sigma) of the levels up to that of z; guesses: of z_0, on the last two or three.
    It depends on the guesses alone, so what was blended into z since stays.
    """
    if len(guesses) < 2:
        return 0.0
    h = lambdas[-1] - lambdas[-2]
    done, change = -math.expm1(-h), guesses[-1] - guesses[-2]
    if len(guesses) == 2:
        return done / 2 * change
    r = (lambdas[-2] - lambdas[-3]) / h
    expected = (guesses[-2] - guesses[-3]) / r
    b_1 = 1 / done - 1 / h
    b_2 = 1 / done - 2 * b_1 / h
    rho = (b_1 - b_2) / (1 + r)
    return done * ((b_1 - rho) * change + (rho - 0.5) * expected)


SOLVERS: dict[Scheduler, Callable[..., list[Step]]] = {
    "ddim": deterministic,
    "dpm++": multistep,
    "unipc": partial(multistep, correct=True),
}


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
