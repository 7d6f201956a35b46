"""A small unconditional diffusion model of pixels: what Blended Diffusion needs, trained from nothing."""

import logging
from pathlib import Path

import torch

from bld.baselines.diffusion import linear_alpha_bar
from bld.baselines.unet import Shape, UNet
from bld.training.composites import Compositor
from bld.training.loop import Run, half_precision, seeded
from bld.training.pictures import PictureRing
from bld.training.recipes import Pixels, Recipe

log = logging.getLogger(__name__)


def shape(recipe: Pixels) -> Shape:
    """How the network is built."""
    return Shape(
        side=recipe.side, channels=recipe.channels, multiples=recipe.multiples, blocks=1, outputs=3,
        attention=(8,), head=min(32, recipe.channels), groups=recipe.groups, patch=recipe.patch,
    )  # fmt: skip


def train(recipe: Recipe, compositor: Compositor, folder: Path) -> None:
    """Train (or go on training) the model; writes `folder/pixels`."""
    torch.manual_seed(recipe.seed)
    generator = seeded(recipe.seed + 5)
    r, alpha_bar = recipe.pixels, linear_alpha_bar()
    unet = UNet(shape(r)).to(torch.get_default_device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Run(
        folder, "pixels", {"pixels": unet}, generator, r.samples, r.batch, r.learning_rate,
        limits=recipe.limits,
    )  # fmt: skip
    ring = PictureRing(compositor, r.side, reuse=r.reuse, kept=r.kept, generator=generator)

    def step() -> torch.Tensor:
        x = ring.draw(r.batch).image
        t = torch.randint(len(alpha_bar), (r.batch,), generator=generator)
        eps, a = torch.randn(x.shape, generator=generator), alpha_bar[t].view(-1, 1, 1, 1)
        x_t = (a.sqrt() * x + (1 - a).sqrt() * eps).to(memory_format=torch.channels_last)
        with half_precision():
            found: torch.Tensor = unet(x_t, t).float()
        return (found - x).square().mean()

    run.train(step)
    run.write("pixels", run.averaged("pixels"))
