"""Seeing an edit happen: what the model takes the picture to be after each step (figures 6 and 15)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bld.blend import blend
from bld.images import from_tensor
from bld.masks import FloatArray
from bld.models.base import CLEAN, LatentModel, Level, Step, Trajectory
from bld.models.memory import enough_memory
from bld.task import Task


@dataclass(frozen=True, eq=False)
class Frame:
    """One step of an edit. step: how many are done, of `steps`. level: the noise that is left.

    z_0: 1 c h w, the model's guess inside the mask, the photograph outside. picture: h w 3 in [0, 1], that
    guess decoded. m_latent: the mask in force at this step, on the latent grid.
    """

    step: int
    steps: int
    level: Level
    z_0: torch.Tensor
    picture: FloatArray
    m_latent: FloatArray


def process(model: LatentModel, task: Task, *, frames: int) -> Iterator[Frame]:
    """Edit with the first candidate's seed, and show `frames` of the steps, or all if they are fewer.

    Those shown are evenly spread, the last included. The edit is the same as any other: the last frame
    is what the decoder gives of it. The guesses are exact for deterministic samplers. Raises BldError where
    memory runs out.
    """
    with enough_memory():
        z_init = model.encode(task.x())
        trajectory = model.trajectory(task.prompt, task.options, task.grid)
        masks, steps = task.m_latent(len(trajectory)), len(trajectory)
        frames = min(frames, steps)
        shown = {round((i + 1) * steps / frames) for i in range(frames)}
        generator = torch.Generator().manual_seed(task.seeds[0])
        m_latent = [torch.from_numpy(m).to(z_init) for m in masks]
        for number, (_, z_0) in enumerate(guesses(trajectory, z_init, m_latent, [generator]), start=1):
            if number in shown:
                level = trajectory[number - 1].level_out
                yield Frame(number, steps, level, z_0, from_tensor(model.decode(z_0))[0], masks[number - 1])


def guesses(
    trajectory: Trajectory,
    z_init: torch.Tensor,
    m_latent: Sequence[torch.Tensor],
    generators: Sequence[torch.Generator],
    left_off: tuple[torch.Tensor, Level] | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`blend`, and beside each z what the model takes the edit to be by then: n c h w each.

    Inside the mask that is its guess, outside the photograph; after the last step both are the edit.
    left_off: as in `blend`.
    """
    kept: list[torch.Tensor] = []
    watched = [Step(step.level_in, step.level_out, _watched(step, kept.append)) for step in trajectory]
    states = blend(watched, z_init, m_latent, generators, left_off)
    for step, m, z in zip(watched, m_latent, states, strict=True):
        guess = kept.pop()
        yield z, z if step.level_out == CLEAN else guess * m + z_init * (1 - m)


def _watched(step: Step, keep: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The step's denoiser, which also hands over its guess of the clean latent."""

    def denoise(z: torch.Tensor) -> torch.Tensor:
        z_fg = step.denoise(z)
        keep(step.memory.guesses[-1] if step.memory else step.guess(z, z_fg))
        return z_fg

    return denoise
