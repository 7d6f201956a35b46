"""What the flow-matching families share: a transformer, and a schedule that shifts with the size."""

from typing import Any

import numpy as np
import torch

from bld.models.base import Level, Prompts, Trajectory
from bld.models.family import Family
from bld.models.trajectory import SOLVERS, start
from bld.options import EditOptions


class FlowFamily(Family):
    """A rectified-flow transformer: z = (1 - sigma) z_0 + sigma eps, and Euler's steps along its velocity."""

    half = torch.bfloat16  # T5 overflows in float16, and so do these transformers
    transformer: Any
    patch = 2  # latent cells per token, along one side

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.multiple = self.latent_factor * self.patch
        cells = getattr(
            self.transformer.config, "sample_size", 128
        )  # what diffusers takes where none is said
        self.native_size = cells * self.latent_factor

    def sigmas(self, steps: int) -> list[float] | None:
        """The schedule before it is shifted; None: the scheduler's own."""
        return [float(sigma) for sigma in np.linspace(1.0, 1 / steps, steps)]

    def shift(self, tokens: int, steps: int) -> float:
        """mu: the more tokens a picture has, the longer the steps stay where there is noise (linear)."""
        facts = self.scheduler
        few, many = facts.get("base_image_seq_len", 256), facts.get("max_image_seq_len", 4096)
        low, high = facts.get("base_shift", 0.5), facts.get("max_shift", 1.15)
        return float(low + (high - low) * (tokens - few) / (many - few))

    def trajectory(self, prompt: Prompts, options: EditOptions, grid: tuple[int, int]) -> Trajectory:
        from diffusers import FlowMatchEulerDiscreteScheduler

        steps = options.steps
        if steps is None:
            raise ValueError("options must be resolved")
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler)
        own = self.sigmas(steps)
        schedule: dict[str, Any] = {"sigmas": own} if own else {"num_inference_steps": steps}
        if scheduler.config.use_dynamic_shifting:
            schedule["mu"] = self.shift((grid[0] // self.patch) * (grid[1] // self.patch), steps)
        scheduler.set_timesteps(**schedule)
        skipped = start(steps, options.strength)
        sigmas = scheduler.sigmas.tolist()[skipped:-1]
        levels = [Level(1 - sigma, sigma) for sigma in sigmas]
        timesteps = scheduler.timesteps.tolist()[skipped:]
        predict = self.guided(prompt, options, grid, timesteps)
        return SOLVERS[options.scheduler](levels, timesteps, predict, "flow")

    def times(self, timestep: float, n: int) -> torch.Tensor:
        """The timestep for each of n latents."""
        return torch.full((n,), timestep, device=self.device)
