"""Make the golden files: `python -m tests.golden.make [NAME ...]`, from the root of the repository.

Nothing calls this but a person who has read the difference and wants it. README.md says what each
file holds and what to do when a test here fails.
"""

import argparse
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bld import Editor
from bld.blend import blend
from bld.images import Photograph, save_png, to_tensor
from bld.masks import Box, feather_inside, latent_mask, shrink_schedule
from bld.models.base import LatentModel
from bld.models.load import load_model
from bld.options import EditOptions, resolve
from bld.reconstruct import Scene, reconstruct

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

HERE = Path(__file__).parent
EDIT_PNG = HERE / "mini_edit.png"
MADE_WITH = ("torch", "diffusers", "transformers", "numpy", "opencv-python-headless", "scikit-image")

PROMPT = "a red apple"
OPTIONS = EditOptions(seed=0, steps=10, candidates=1, shrink=False, feather=4, guidance_scale=5.0)


# --- geometry: no model ---


def ellipse(size: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]) -> Array:
    y, x = np.ogrid[: size[0], : size[1]]
    inside = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1
    return inside.astype(np.float32)


def diagonal(size: tuple[int, int], width: int) -> Array:
    y, x = np.ogrid[: size[0], : size[1]]
    return (np.abs(y * size[1] - x * size[0]) <= width * max(size) / 2).astype(np.float32)


def corner(size: tuple[int, int]) -> Array:
    """The letter L, five pixels thick."""
    mask = np.zeros(size, np.float32)
    mask[10:-10, 10:15] = mask[-15:-10, 10:-10] = 1
    return mask


def geometry() -> Arrays:
    """Latent masks, a shrink schedule and a feather."""
    shapes = {
        "ellipse": ellipse((128, 128), (50, 70), (30, 20)),
        "diagonal": diagonal((128, 96), 3),
        "corner": corner((100, 75)),  # neither side divides by its cells
    }
    line = np.zeros((32, 32), np.float32)
    line[16, 4:28] = 1
    return {
        **{f"latent_mask/{name}": latent_mask(mask, (16, 12)) for name, mask in shapes.items()},
        "shrink_schedule/line/32": np.stack(shrink_schedule(line, 8)),
        "shrink_schedule/line/16": np.stack(shrink_schedule(line[8:24, 8:24], 10)),
        "feather_inside/ellipse": feather_inside(ellipse((40, 48), (18, 20), (15, 18)), 6),
        "feather_inside/corner": feather_inside(corner((40, 48)), 6),
    }


# --- stitch: no model ---


def scene(dtype: npt.DTypeLike) -> Scene:
    """A photograph of 40 x 48, an elliptic mask, and a decoded picture of 24 x 24 for a crop of 36 x 36."""
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    return Scene(
        photograph=Photograph(rng.integers(0, top, (40, 48, 3), endpoint=True).astype(dtype)),
        box=Box(2, 5, 36, 36),
        mask=ellipse((40, 48), (20, 22), (14, 16)),
        decoded=rng.random((24, 24, 3), np.float32),
        z_0=torch.zeros(1),  # of no use to stitch
        decoder=torch.nn.Identity,
        options=EditOptions(feather=4),
    )


def stitch() -> Arrays:
    return {np.dtype(d).name: reconstruct("stitch", scene(d)).pixels for d in (np.uint8, np.uint16)}


# --- the bundled model ---


def photograph() -> Array:
    """128 x 128 of the astronaut (NASA, public domain): her face."""
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[48:176, 160:288])


def edited() -> Array:
    return ellipse((128, 128), (64, 64), (28, 24))


def mini() -> Arrays:
    """Levels of 50 steps, and the latents and the picture of one edit of 10 steps."""
    model: LatentModel = load_model("mini", device="cpu")
    options = resolve(OPTIONS, steps=50, guidance_scale=1, shrink=False, soft_mask=False, feather=0)
    fifty = resolve(
        EditOptions(steps=50), steps=50, guidance_scale=1, shrink=False, soft_mask=False, feather=0
    )
    levels = [step.level_in for step in model.trajectory(PROMPT, fifty, (16, 16))]
    z_init = model.encode(to_tensor(photograph().astype(np.float32) / 255))
    trajectory = model.trajectory(PROMPT, options, (16, 16))
    m = torch.from_numpy(latent_mask(edited(), (z_init.shape[2], z_init.shape[3])))
    generator = torch.Generator().manual_seed(0)
    *_, z = blend(trajectory, z_init, [m] * len(trajectory), [generator])
    result = Editor(model).edit(photograph(), edited(), PROMPT, options=OPTIONS)
    return {
        "levels": np.array(levels),
        "z_init": z_init[0].numpy(),
        "z": z[0].numpy(),
        "picture": result.best.photograph.pixels,
        "revision": np.array(model.revision),
    }


# --- files ---

SETS: dict[str, Callable[[], Arrays]] = {"geometry": geometry, "stitch": stitch, "mini": mini}


def made_with() -> str:
    packages = [f"{name} {version(name)}" for name in MADE_WITH]
    return ", ".join([f"python {platform.python_version()}", platform.machine(), *packages])


def write(name: str) -> None:
    """Make one set and write it; the picture goes into a file of its own, to be looked at."""
    arrays = SETS[name]()
    picture = arrays.pop("picture", None)
    if picture is not None:
        save_png(EDIT_PNG, picture, text={"made_with": made_with()})
    np.savez_compressed(HERE / f"{name}.npz", **arrays, made_with=np.array(made_with()))


def read(name: str) -> Arrays:
    """A set as it lies in the repository."""
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make golden files again. Look at the difference before.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SETS)}; all if left out")
    for chosen in parser.parse_args().names or SETS:
        write(chosen)
        print(f"made {chosen}")
