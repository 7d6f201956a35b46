"""Composites kept for a while, so that each costs one drawing and serves several steps."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from bld.training.composites import Compositor
from bld.training.crops import object_boxes


class Pictures(NamedTuple):
    """image: b 3 s s, [-1, 1]; box: b 4, of the object as a user masks it; the rest as in `Composites`."""

    image: torch.Tensor
    box: torch.Tensor
    name: torch.Tensor
    colour: torch.Tensor
    flat: torch.Tensor


class PictureRing:
    """A ring of `kept` composites, `side` px wide, refilled as they are shown: each serves `reuse` times.

    An eighth of them is there before the first step.
    """

    def __init__(
        self,
        compositor: Compositor,
        side: int,
        *,
        reuse: int,
        kept: int,
        generator: torch.Generator,
        mirrored: float = 0.5,
    ) -> None:
        """mirrored: the share of the pictures that are shown so."""
        self.compositor, self.side, self.reuse, self.generator = compositor, side, reuse, generator
        self.mirrored = mirrored
        self.image = torch.zeros(kept, 3, side, side, dtype=torch.uint8)
        self.box = torch.zeros(kept, 4)
        self.facts = torch.zeros(3, kept, dtype=torch.int64)  # name, colour, flat
        self.drawn, self.owed = 0, 0.0
        while self.drawn < kept // 8:
            self._refill(32)

    def _refill(self, count: int) -> None:
        fresh = self.compositor.draw(count, self.generator)
        where = (self.drawn + torch.arange(count)) % len(self.image)
        small = F.interpolate(fresh.image, (self.side, self.side), mode="area")
        self.image[where] = (small * 255).round().to(torch.uint8)
        self.box[where] = object_boxes(fresh, self.generator)
        self.facts[:, where] = torch.stack([fresh.name, fresh.colour, fresh.flat.long()])
        self.drawn += count

    def draw(self, batch: int) -> Pictures:
        """A batch of them, some mirrored."""
        self.owed += batch / self.reuse
        while self.owed >= 32:
            self._refill(32)
            self.owed -= 32
        pick = torch.randint(min(self.drawn, len(self.image)), (batch,), generator=self.generator)
        image, box = self.image[pick].float() / 127.5 - 1, self.box[pick]
        mirrored = torch.rand(batch, generator=self.generator) < self.mirrored
        image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
        box = torch.where(
            mirrored[:, None], torch.stack([box[:, 0], 1 - box[:, 3], box[:, 2], 1 - box[:, 1]], 1), box
        )
        name, colour, flat = self.facts[:, pick]
        return Pictures(image, box, name, colour, flat)
