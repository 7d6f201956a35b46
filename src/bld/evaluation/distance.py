"""How different two pictures look: LPIPS, and the same distance on another network's features.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from bld.classify import Classifier, on_black
from bld.errors import ModelUnavailable
from bld.masks import FloatArray

Features = list[torch.Tensor]

# AlexNet's convolutions as torchvision's checkpoint has them: place in the file, channels in and out,
# kernel, stride, padding.
ALEXNET = (
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)
POOLED = (1, 2)  # convolutions that a max pooling of 3, stride 2, goes before
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS, for values in [-1, 1]


class Distance(Protocol):
    """A perceptual distance between two edits of one photograph; 0 for equal ones."""

    name: str

    def features(self, picture: FloatArray, mask: FloatArray) -> Features:
        """What is compared, of a picture h w 3 in [0, 1] and its mask h w."""
        ...

    def between(self, a: Features, b: Features) -> float:
        """The distance."""
        ...


def between(a: Features, b: Features, weights: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
    """The sum over layers of the mean over places of the weighted squares between unit vectors; n.

    a, b: n c h w for each layer. weights: c for each layer, all of them 1/c if there are none.
    """
    layers = []
    for layer, (x, y) in enumerate(zip(a, b, strict=True)):
        squares = (_unit(x) - _unit(y)).square()
        w = torch.full((x.shape[1],), 1 / x.shape[1]) if weights is None else weights[layer]
        layers.append((squares * w[:, None, None].to(squares)).sum(1).mean((1, 2)))
    return torch.stack(layers).sum(0)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-20).sqrt()  # where all is 0 it has a gradient too


class ClassifierDistance:
    """The distance on a classifier's features of the edits on black, unweighted: not LPIPS, and no figures
    of the paper.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.name = classifier, f"features of {classifier.name}"

    def features(self, picture: FloatArray, mask: FloatArray) -> Features:
        return self.classifier.features(self.classifier.view(on_black(picture, mask), mask))

    def between(self, a: Features, b: Features) -> float:
        return float(between(a, b))


class Lpips:
    """LPIPS 0.1 on AlexNet, of the edits on black; and of tensors, with a gradient, as a loss."""

    name = "LPIPS (AlexNet)"

    def __init__(self, alexnet: Path, heads: Path, *, device: torch.device | str = "cpu") -> None:
        """alexnet: torchvision's checkpoint. heads: the published linear heads. Raises ModelUnavailable."""
        weights, linear = _tensors(alexnet), _tensors(heads)
        self.convolutions = nn.ModuleList()
        try:
            for place, channels, width, kernel, stride, padding in ALEXNET:
                convolution = nn.Conv2d(channels, width, kernel, stride, padding)
                convolution.weight = nn.Parameter(weights[f"features.{place}.weight"].float())
                convolution.bias = nn.Parameter(weights[f"features.{place}.bias"].float())
                self.convolutions.append(convolution)
            self.heads = [linear[f"lin{i}.model.1.weight"].float().flatten() for i in range(len(ALEXNET))]
        except KeyError as error:
            raise ModelUnavailable(
                f"{alexnet}, {heads}: {error} is missing; give AlexNet's and LPIPS'"
            ) from error
        self.convolutions.to(device).requires_grad_(False)
        self.device = torch.device(device)

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The distance of pictures n 3 h w from others, or from one, in [-1, 1]; n, differentiable."""
        return between(self._activations(a), self._activations(b), self.heads).to(a.device)

    @torch.no_grad()
    def features(self, picture: FloatArray, mask: FloatArray) -> Features:
        masked = np.ascontiguousarray(on_black(picture, mask), np.float32)
        return self._activations(torch.from_numpy(masked).permute(2, 0, 1)[None] * 2 - 1)

    def between(self, a: Features, b: Features) -> float:
        return float(between(a, b, self.heads))

    def _activations(self, x: torch.Tensor) -> Features:
        """Of every convolution, for x n 3 h w in [-1, 1]."""
        shift, scale = (torch.tensor(of, device=self.device).view(3, 1, 1) for of in (SHIFT, SCALE))
        x = (x.to(self.device) - shift) / scale
        found = []
        for number, convolution in enumerate(self.convolutions):
            if number in POOLED:
                x = nn.functional.max_pool2d(x, 3, 2)
            x = convolution(x).relu()
            found.append(x)
        return found


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file. Raises ModelUnavailable if it cannot be read."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return found
    except Exception as error:  # OSError, UnpicklingError, SafetensorError, ...
        raise ModelUnavailable(f"{path}: cannot be read ({str(error).partition(chr(10))[0]})") from error
