"""Sampling an edit's candidates: a micro-batch at a time, the hopeless dropped on the way.

Every candidate has a generator of its own and its own row of whatever a solver remembers, so it comes out the
same in any micro-batch, and whether or not others are dropped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from bld.models.base import LatentModel
from bld.process import guesses
from bld.rank import Ranking
from bld.task import Task

LOOKS = (0.25, 0.5)  # shares of the steps after which candidates are dropped

Judge = Callable[[torch.Tensor], Ranking]
"""Ranks guesses of clean latents, n c h w."""

Watch = Callable[[Sequence[int], torch.Tensor], None]
"""Called after each step of a micro-batch, with its seeds and its guesses."""


@dataclass(frozen=True)
class Dropped:
    """A candidate that was not finished. step: how many it had taken. score: what it was worth by then."""

    seed: int
    step: int
    score: float


@dataclass(frozen=True)
class Round:
    """Steps from `first` to `last` for `candidates`, of whom `kept` go on."""

    first: int
    last: int
    candidates: int
    kept: int


@dataclass(eq=False)
class Running:
    """A candidate in work. z, guess: 1 c h w; remembered: a multistep solver's guesses, likewise."""

    seed: int
    generator: torch.Generator
    z: torch.Tensor
    guess: torch.Tensor
    remembered: tuple[torch.Tensor, ...] = ()


def rounds(steps: int, candidates: int, finalists: int | None) -> list[Round]:
    """Successive halving: at each of the looks the same share goes, until the finalists are left.

    Looks that fall on the same step are one, and where there is one step alone, nobody goes.
    """
    if finalists is None or finalists >= candidates:
        return [Round(0, steps, candidates, candidates)]
    share = (finalists / candidates) ** (1 / len(LOOKS))
    plan, first, left = [], 0, candidates
    for number, look in enumerate(LOOKS, start=1):
        last = min(max(1, round(look * steps)), steps - 1)
        kept = finalists if number == len(LOOKS) else math.ceil(candidates * share**number)
        if first < last:
            plan.append(Round(first, last, left, kept))
        elif plan:
            plan[-1] = replace(plan[-1], kept=kept)
        else:
            continue
        first, left = last, kept
    return [*plan, Round(first, steps, left, left)]


def batches(candidates: int, most: int) -> list[slice]:
    """Micro-batches of `most` at most."""
    return [slice(i, min(i + most, candidates)) for i in range(0, candidates, most)]


def passes(plan: Sequence[Round], most: int) -> int:
    """How many steps of micro-batches a plan has."""
    return sum((r.last - r.first) * len(batches(r.candidates, most)) for r in plan)


def sample(
    model: LatentModel, task: Task, z_init: torch.Tensor, plan: Sequence[Round], judge: Judge, watch: Watch
) -> tuple[list[Running], list[Dropped]]:
    """The candidates that were finished, in the order of their seeds, and those that were dropped.

    z_init: 1 c h w. plan: from `rounds`; `judge` is asked between two of them alone.
    """
    running = [Running(s, torch.Generator().manual_seed(s), z_init, z_init) for s in task.seeds]
    dropped: list[Dropped] = []
    for part in plan:
        for batch in batches(len(running), task.batch_size):
            for guess in advance(model, task, z_init, part, running[batch]):
                watch([candidate.seed for candidate in running[batch]], guess)
        if part.kept < len(running):
            ranking = judge(torch.cat([candidate.guess for candidate in running]))
            dropped += [
                Dropped(running[i].seed, part.last, ranking.scores[i]) for i in ranking.order[part.kept :]
            ]
            running = [running[i] for i in sorted(ranking.order[: part.kept])]
    return running, dropped


def advance(
    model: LatentModel, task: Task, z_init: torch.Tensor, part: Round, batch: Sequence[Running]
) -> Iterator[torch.Tensor]:
    """Take a micro-batch through a part of the steps; yields its guesses after each, n c h w."""
    trajectory = model.trajectory(task.prompt, task.options, task.grid)
    m_latent = [torch.from_numpy(m).to(z_init) for m in task.m_latent(len(trajectory))]
    steps, generators = slice(part.first, part.last), [candidate.generator for candidate in batch]
    memory, left_off = trajectory[0].memory, None
    if part.first:
        left_off = (torch.cat([c.z for c in batch]), trajectory[part.first - 1].level_out)
        if memory:
            memory.guesses = tuple(
                torch.cat(of_all) for of_all in zip(*(c.remembered for c in batch), strict=True)
            )
    z = guess = z_init
    for state in guesses(trajectory[steps], z_init, m_latent[steps], generators, left_off):
        z, guess = state
        yield guess
    for i, candidate in enumerate(batch):
        candidate.z, candidate.guess = z[i : i + 1], guess[i : i + 1]
        candidate.remembered = tuple(of_all[i : i + 1] for of_all in memory.guesses) if memory else ()
