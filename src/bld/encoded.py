"""Latents that are not made twice: several prompts for one photograph, and a session that goes back."""

import hashlib
import threading
from collections import OrderedDict

import torch

from bld.models.base import LatentModel

REMEMBERED = 8  # crops


class Encoded:
    """E(x) of a model, which remembers the last crops by their content. Safe where edits run at once."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        self._latents: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """z_init, 1 c h w, for x of 1 3 h w in [-1, 1]. Nobody writes into it."""
        key = f"{tuple(x.shape)} {hashlib.sha256(x.numpy().tobytes()).hexdigest()}"
        with self._lock:
            if key in self._latents:
                self._latents.move_to_end(key)
                return self._latents[key]
        z_init = self.model.encode(x)
        with self._lock:
            self._latents[key] = z_init
            while len(self._latents) > REMEMBERED:
                self._latents.popitem(last=False)
        return z_init
