"""Composites: cut-outs set into photographs, with light, shadow and an exact mask, made in batches.

Everything is batched tensor work, so the same code runs on a CPU and on a GPU that must not starve.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from bld.training.colours import COLOURS, recoloured
from bld.training.data import SPRITE_FILL, Sprites
from bld.training.vocabulary import vocabulary

EMPTY = 0.09  # of the pictures, without an object
COLOURED = 0.25  # of the objects that have a colour, those that get another
OFTEN = 3.0  # how often a name of the vocabulary is drawn, beside one of the other cut-outs
DRAWN = 1 / 3  # how often a drawn cut-out is, beside a rendered one of the same name
Uniform = Callable[..., torch.Tensor]  # (low, high, *shape): evenly drawn numbers


@dataclass(frozen=True)
class Composites:
    """A batch of pictures. image: b 3 s s, [0,1]; alpha: b 1 s s, [0,1], the object's coverage;
    shadow: b 1 s s, [0,1]; name: b, int64, index into the vocabulary, -1 where the scene is empty;
    colour: b, int64, index into COLOURS of the colour given to the object, -1 if it has its own; flat: b,
    bool, of a drawn object.
    """

    image: torch.Tensor
    alpha: torch.Tensor
    shadow: torch.Tensor
    name: torch.Tensor
    colour: torch.Tensor
    flat: torch.Tensor


def random_crop(picture: np.ndarray, size: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """A square crop of random side >= `least`, scaled to `size` and flipped half the time."""
    height, width = picture.shape[:2]
    side = int(rng.integers(min(least, height, width), min(height, width) + 1))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    crop = picture[top : top + side, left : left + side]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def procedural(size: int, rng: np.random.Generator) -> np.ndarray:
    """A plain backdrop: a gradient between two colours with soft blotches."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    ramp = (x * math.cos(angle) + y * math.sin(angle) + 0.7)[..., None] / 1.4
    colours = rng.uniform(0.05, 1, (2, 3))
    blotches = cv2.resize(
        rng.normal(0, rng.uniform(0, 0.12), (6, 6, 3)), (size, size), interpolation=cv2.INTER_CUBIC
    )
    backdrop = colours[0] * ramp + colours[1] * (1 - ramp) + blotches
    return np.asarray(backdrop.clip(0, 1) * 255, np.uint8)


def background_pool(
    scenes: list[np.ndarray], photographs: np.ndarray, count: int, size: int, seed: int
) -> torch.Tensor:
    """`count` backgrounds, n 3 size size uint8: 60 % scenery, 25 % photographs, 15 % plain backdrops."""
    rng = np.random.default_rng(seed)
    pool = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        kind = rng.random()
        if kind < 0.60:
            pool[i] = random_crop(scenes[rng.integers(len(scenes))], size, size, rng)
        elif kind < 0.85:
            pool[i] = random_crop(photographs[rng.integers(len(photographs))], size, size * 3 // 4, rng)
        else:
            pool[i] = procedural(size, rng)
    return torch.from_numpy(pool.transpose(0, 3, 1, 2).copy())


class Compositor:
    """Draws batches of composites from cut-outs and a pool of backgrounds.

    An edit runs on a crop around its mask, so that is where objects stand here: at the centre, a 25th
    off it at most, their long side 0.56 to 0.76 of the picture (mode 0.65), as large as a mask in its context
    of 1.2 times. They are hardly turned and never mirrored: each freedom blurs what a
    model of few samples makes of a prompt before it sees any structure.
    """

    def __init__(self, sprites: Sprites, backgrounds: torch.Tensor, coloured: float = COLOURED) -> None:
        here = torch.get_default_device()
        self.coloured = coloured
        self.sprites, self.backgrounds = sprites.to(here), backgrounds.to(here)
        # Names are drawn by their own weights, whatever number of cut-outs shows each.
        share = torch.where(self.sprites.flat, DRAWN, 1.0)
        total = torch.zeros(int(self.sprites.name.max()) + 1).index_add_(0, self.sprites.name, share)
        often = torch.where(self.sprites.name < len(vocabulary()), OFTEN, 1.0)
        self.weights = often * share / total[self.sprites.name]

    @property
    def size(self) -> int:
        return self.backgrounds.shape[-1]

    def draw(self, batch: int, generator: torch.Generator) -> Composites:
        """`batch` fresh composites; the generator decides everything."""
        device = self.backgrounds.device

        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator, device=device)

        which = torch.multinomial(self.weights, batch, replacement=True, generator=generator)
        place = self._place(which, uniform)
        colour = torch.randint(len(COLOURS), (batch,), generator=generator, device=device)
        changed = (uniform(0, 1, batch) < self.coloured) & ~self.sprites.hue[which].isnan()
        colour = torch.where(changed, colour, -1)
        rgb, alpha = self._object(which, place, colour)
        scene = self._scene(batch, generator, uniform)
        rgb = self._lit(rgb, alpha, scene, uniform)
        shown = (uniform(0, 1, batch) >= EMPTY).float()[:, None, None, None]
        alpha, rgb = alpha * shown, rgb * shown
        shadow = self._shadow(which, place, uniform) * shown
        image = scene * (1 - shadow) * (1 - alpha) + rgb
        grain = torch.randn(image.shape, generator=generator, device=device) * uniform(
            0, 0.012, batch, 1, 1, 1
        )
        name = torch.where(shown.flatten() > 0, self.sprites.name[which], -1)
        colour = torch.where(name < 0, -1, colour)
        flat = self.sprites.flat[which]
        return Composites((image + grain).clamp(0, 1), alpha, shadow, name, colour, flat)

    def _place(self, which: torch.Tensor, uniform: Uniform) -> dict[str, torch.Tensor]:
        """Where each object stands. Lengths are in pictures: 1 is the whole side."""
        batch = len(which)
        scale = 0.56 * (0.76 / 0.56) ** ((uniform(0, 1, batch) + uniform(0, 1, batch)) / 2)
        extent = self.sprites.extent[which] / (SPRITE_FILL / 2) * scale[:, None] / 2  # half h, half w
        centre = 0.5 + 0.02 * (uniform(-1, 1, batch, 2) + uniform(-1, 1, batch, 2))
        angle = 0.05 * (uniform(-1, 1, batch) + uniform(-1, 1, batch) + uniform(-1, 1, batch)) / 1.7
        aspect = uniform(-0.03, 0.03, batch).exp()
        return {
            "scale": scale,
            "extent": extent,
            "centre": centre,
            "angle": angle,
            "aspect": aspect,
        }

    def specimens(self, which: torch.Tensor, colour: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut-outs as they mostly stand, upright at the centre and unlit: premultiplied rgb and alpha."""
        alike = torch.ones(len(which), device=self.backgrounds.device)
        place = {"scale": 0.65 * alike, "centre": 0.5 * torch.stack([alike, alike], 1)}
        return self._object(which, {**place, "angle": 0 * alike, "aspect": alike}, colour)

    def _grid(self, side: int) -> torch.Tensor:
        """Pixel centres of a side x side picture in [0,1], as side side 2 (y, x)."""
        line = (torch.arange(side, device=self.backgrounds.device) + 0.5) / side
        return torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)

    def _object(
        self, which: torch.Tensor, p: dict[str, torch.Tensor], colour: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The objects, sampled at twice the size and averaged: premultiplied rgb and alpha."""
        offset = self._grid(2 * self.size)[None] - p["centre"][:, None, None]  # b h w 2
        c, s = p["angle"].cos()[:, None, None], p["angle"].sin()[:, None, None]
        y = (c * offset[..., 0] - s * offset[..., 1]) / p["aspect"][:, None, None]
        x = (s * offset[..., 0] + c * offset[..., 1]) * p["aspect"][:, None, None]
        local = torch.stack([x, y], -1) * (2 * SPRITE_FILL / p["scale"])[:, None, None, None]
        rgba = self.sprites.rgba[which].float() / 255
        changed = colour >= 0
        rgba[changed] = recoloured(rgba[changed], self.sprites.hue[which[changed]], colour[changed])
        rgba = F.avg_pool2d(F.grid_sample(rgba, local, align_corners=False), 2)
        return rgba[:, :3], rgba[:, 3:]

    def _scene(self, batch: int, generator: torch.Generator, uniform: Uniform) -> torch.Tensor:
        """Backgrounds with random exposure, gamma, colour temperature and defocus."""
        pick = torch.randint(
            len(self.backgrounds), (batch,), generator=generator, device=self.backgrounds.device
        )
        scene = self.backgrounds[pick].float() / 255
        tint = torch.cat(
            [
                uniform(0.92, 1.08, batch, 1),
                torch.ones(batch, 1, device=scene.device),
                uniform(0.92, 1.08, batch, 1),
            ],
            1,
        )
        scene = (
            scene ** uniform(0.85, 1.2, batch, 1, 1, 1)
            * (uniform(0.75, 1.3, batch, 1) * tint)[:, :, None, None]
        )
        blur = F.avg_pool2d(F.pad(scene, (2, 2, 2, 2), mode="replicate"), 5, 1)
        defocus = (uniform(-1, 1, batch, 1, 1, 1)).clamp(min=0)
        graded: torch.Tensor = (scene + defocus * (blur - scene)).clamp(0, 1)
        return graded

    def _lit(
        self, rgb: torch.Tensor, alpha: torch.Tensor, scene: torch.Tensor, uniform: Uniform
    ) -> torch.Tensor:
        """Objects take on some of the scene's brightness, and shading from a random side."""
        batch = len(rgb)
        area = alpha.sum((2, 3)).clamp(min=1)
        own = (rgb.mean(1, keepdim=True).sum((2, 3)) / area).clamp(min=0.05)
        local = (scene.mean(1, keepdim=True) * alpha).sum((2, 3)) / area
        gain = (local / own) ** uniform(0.1, 0.4, batch, 1)
        direction, amount = uniform(0, 2 * math.pi, batch, 1, 1), uniform(0, 0.15, batch, 1, 1)
        y, x = (self._grid(self.size) - 0.5).unbind(-1)
        shading = 1 + amount * 2 * (x * direction.cos() + y * direction.sin())
        lit = rgb * gain.clamp(0.75, 1.2)[..., None, None] * shading[:, None]
        return torch.minimum(lit, alpha)  # premultiplied: a colour never exceeds its alpha

    def _shadow(self, which: torch.Tensor, p: dict[str, torch.Tensor], uniform: Uniform) -> torch.Tensor:
        """Soft contact shadow and a wider cast one under objects that stand; none for those that fly."""
        batch = len(which)
        y, x = self._grid(self.size).unbind(-1)
        half_h, half_w = p["extent"].unbind(-1)
        foot = (p["centre"][:, 0] + half_h * 0.97)[:, None, None]
        across = (x - p["centre"][:, 1, None, None]) / half_w[:, None, None]
        lean = uniform(-0.5, 0.5, batch, 1, 1)

        def ellipse(width: float, height: float, shift: torch.Tensor) -> torch.Tensor:
            up = (y - foot) / (height * half_w[:, None, None])
            return torch.exp(-(((across - shift) / width) ** 2) - up**2)

        soft = torch.maximum(0.5 * ellipse(1.1, 0.32, lean), 0.9 * ellipse(0.75, 0.10, 0 * lean))
        cast = (uniform(0, 1, batch) > 0.25) & ~self.sprites.flies[which]
        strength = uniform(0.35, 0.65, batch) * cast
        shadow: torch.Tensor = (soft * strength[:, None, None])[:, None]
        return shadow
