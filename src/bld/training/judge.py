"""The judge: a small classifier that says what stands in a picture. For evaluation only.

It sees the same kind of composites as the generator, and shares nothing else with it: another
architecture, both styles of cut-outs, its own backgrounds, seeds and augmentations. It never ranks or
chooses, or it would stop being a judge.
"""

import logging
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from bld.classify import look, squared
from bld.training.composites import Compositor
from bld.training.loop import Run, begin_with, half_precision, seeded
from bld.training.pictures import PictureRing
from bld.training.recipes import Recipe
from bld.training.vocabulary import Name

log = logging.getLogger(__name__)
BACKGROUND = "background"


def build(names: tuple[Name, ...], side: int) -> ResNetForImageClassification:
    """An untrained residual network over all names and "background", for pictures of `side` pixels."""
    labels = [name.name for name in names] + [BACKGROUND]
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 192],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            image_size=side,
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
    )


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Contrast, tint, softness and grain: what a decoder may do to a picture. x: b 3 s s, [0,1]."""
    b = len(x)
    gain = 0.75 + 0.5 * torch.rand(b, 3, 1, 1, generator=generator)
    x = (x - 0.5) * gain + 0.5 + 0.1 * torch.randn(b, 1, 1, 1, generator=generator)
    soft = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="bilinear", align_corners=False)
    x = x + torch.rand(b, 1, 1, 1, generator=generator) * (soft - x)
    return (x + 0.03 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def classify(judge: ResNetForImageClassification, image: torch.Tensor) -> torch.Tensor:
    """Logits b names+1 for pictures b 3 side side in [0, 1]."""
    with half_precision():
        logits: torch.Tensor = judge(image * 2 - 1).logits
    return logits.float()


def train(
    recipe: Recipe,
    compositor: Compositor,
    names: tuple[Name, ...],
    folder: Path,
    start_from: Path | None = None,
) -> None:
    """Train the judge; writes `folder/judge`. Its accuracy on fresh composites is logged.

    `start_from` is the folder of a judge of the same recipe whose weights a fresh run begins with.
    """
    torch.manual_seed(recipe.seed)
    generator = seeded(recipe.seed + 3)
    r = recipe.judge
    judge = build(names, r.side).to(torch.get_default_device())
    if start_from and not (folder / "judge.pt").exists():
        begin_with(judge, start_from)
    run = Run(
        folder, "judge", {"judge": judge}, generator, r.samples, r.batch, r.learning_rate,
        limits=recipe.limits,
    )  # fmt: skip

    # The square around an object is two thirds of its picture, or more.
    fresh = partial(
        PictureRing,
        compositor,
        3 * r.side // 2,
        reuse=r.reuse,
        kept=r.kept,
        generator=generator,
        mirrored=0.0,
    )

    def batch(ring: PictureRing) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = ring.draw(r.batch)
        crops = look((drawn.image + 1) / 2, squared(drawn.box), r.side)
        return augment(crops, generator), torch.where(drawn.name < 0, len(names), drawn.name)

    shown = fresh()

    def step() -> torch.Tensor:
        image, label = batch(shown)
        return F.cross_entropy(classify(judge, image), label, label_smoothing=0.1)

    run.train(step)
    run.averaged("judge")
    unseen = fresh()
    with torch.no_grad():
        exam = (batch(unseen) for _ in range(16))
        hits = [(classify(judge, x).argmax(1) == y).float().mean() for x, y in exam]
    log.info("judge: %.1f %% of fresh composites named right", 100 * float(torch.stack(hits).mean()))
    run.write("judge", judge)
