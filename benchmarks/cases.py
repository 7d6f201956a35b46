"""What the benchmarks share: cases on held-out scenes, and edits whose inner parts can be exchanged."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from bld import EditOptions
from bld.blend import blend
from bld.images import from_tensor
from bld.masks import FloatArray
from bld.models.base import LatentModel
from bld.task import Task, check
from bld.training.sheet import held_out_crops
from bld.training.vocabulary import Name, vocabulary

SIDE = 256  # px of every photograph here

Array = np.ndarray[Any, Any]
Blend = Callable[..., Iterator[torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Case:
    """A photograph h w 3 uint8, a mask h w bool, and the name that the prompt asks for."""

    photograph: Array
    mask: Array
    name: Name


def arguments(what: str | None, *, cases: int) -> argparse.ArgumentParser:
    """The flags that every benchmark on cases has."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the training tars")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--cases", type=int, default=cases)
    return parser


def cases(
    data: Path, count: int, mask: Callable[[int, np.random.Generator], Array], seed: int = 0
) -> list[Case]:
    """`count` cases on crops of the held-out scenes; names are drawn without repeats as far as they go."""
    rng = np.random.default_rng(seed)
    names = vocabulary()
    order = np.concatenate([rng.permutation(len(names)) for _ in range(-(-count // len(names)))])
    crops = held_out_crops(data, count, SIDE // 2, rng)
    return [
        Case(_scaled(crop), mask(SIDE, rng), names[i]) for crop, i in zip(crops, order[:count], strict=True)
    ]


def _scaled(crop: Array) -> Array:
    return np.asarray(cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def sampled(
    model: LatentModel,
    task: Task,
    m_latent: Sequence[FloatArray],
    *,
    seeds: Sequence[int],
    by: Blend = blend,
) -> list[FloatArray]:
    """What the model sees after an edit with these latent masks: h w 3 in [0, 1] for each seed.

    Outside the mask the photograph, inside the decoder's picture, as a ranker is shown them.
    """
    z_init = model.encode(task.x())
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    masks = [torch.from_numpy(m).to(z_init) for m in m_latent]
    z = z_init
    for z in by(model.trajectory(task.prompt, task.options, task.grid), z_init, masks, generators):  # noqa: B007
        pass
    x, m = from_tensor(task.x())[0], task.seen_mask()[..., None]
    return [x + m * (y - x) for y in (from_tensor(model.decode(one[None]))[0] for one in z)]


def checked(model: LatentModel, case: Case, **options: Any) -> Task:
    """The case as a task of the editor."""
    asked = EditOptions(candidates=1, **options)
    return check(model, case.photograph, case.mask, case.name.phrase(), asked)
