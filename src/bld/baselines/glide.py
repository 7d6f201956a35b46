"""GLIDE-filtered (Nichol et al. 2022): inpainting by a base of 64 px that reads a text, and its upsampler.

The schedule, the guidance and the order of things are those of the released notebook for inpainting. Beside
it GLIDE-masked, which is shown nothing of the photograph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bld.baselines.diffusion import (
    Level,
    Prediction,
    clean,
    cosine_alpha_bar,
    even,
    fast27,
    ladder,
    linear_alpha_bar,
    posterior,
    predicted,
)
from bld.baselines.painter import Progress
from bld.baselines.unet import WEIGHTS, Shape, Text, UNet
from bld.models.networks import loading
from bld.models.weights import read_tensors, sampled
from bld.options import EditOptions, Reconstruction

BASE, UPSAMPLER, TOKENIZER = "base", "upsampler", "tokenizer"
COLDER = 0.997  # of the noise that the upsampler starts from, "upsample_temp"

TEXT = Text(vocabulary=50_257, tokens=128, width=512, layers=16, heads=8)
RELEASED = {
    BASE: Shape(
        side=64, channels=192, multiples=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), inputs=7, text=TEXT
    ),
    UPSAMPLER: Shape(
        side=256, channels=192, multiples=(1, 1, 2, 2, 4, 4), blocks=2, attention=(32, 16, 8), inputs=10,
        text=TEXT,
    ),
}  # fmt: skip
FILES = {BASE: "base_inpaint", UPSAMPLER: "upsample_inpaint"}  # as they were released, .pt or .safetensors


def eight_bits(x: torch.Tensor) -> torch.Tensor:
    """x in [-1, 1] as a file would keep it."""
    return ((x + 1) * 127.5).round() / 127.5 - 1


@dataclass(frozen=True)
class Known:
    """What is left of the photograph, at one network's size. x: 1 3 h w; m: 1 1 h w, 1 = keep."""

    x: torch.Tensor
    m: torch.Tensor

    def into(self, x_0: torch.Tensor) -> torch.Tensor:
        """A guess of the clean picture with the known part put right, cut to [-1, 1]."""
        return (x_0 * (1 - self.m) + self.x * self.m).clamp(-1, 1)

    def shown(self, x_t: torch.Tensor) -> torch.Tensor:
        """What a network for inpainting sees: x_t, the known part, and where that is."""
        n = len(x_t)
        return torch.cat([x_t, (self.x * self.m).expand(n, -1, -1, -1), self.m.expand(n, -1, -1, -1)], 1)


class Glide:
    """The pair as a painter. masked: it is shown nothing of the photograph (GLIDE-masked)."""

    steps, guidance_scale, candidates = 100, 5.0, 24
    reconstruct: Reconstruction = "stitch"

    def __init__(
        self, base: UNet, upsampler: UNet, tokenizer: Any, *, name: str, revision: str, masked: bool
    ) -> None:
        self.base, self.upsampler, self.tokenizer = base, upsampler, tokenizer
        self.name, self.revision, self.masked = name, revision, masked
        self.side, self.factor = upsampler.shape.side, upsampler.shape.side // base.shape.side

    @classmethod
    def load(cls, folder: Path, *, masked: bool, pickles: bool = False) -> "Glide":
        """The pair of a folder: this package's (base, upsampler, tokenizer), or the released files beside a
        tokenizer. Raises ModelUnavailable if it is neither, or not whole.
        """
        from transformers import AutoTokenizer

        with loading(folder, TOKENIZER):
            tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
        networks: list[UNet] = []
        files: list[Path] = []
        for part, shape in RELEASED.items():
            found = sorted(file for file in folder.glob(f"{FILES[part]}.*"))
            if found:
                with loading(found[0], "network"):
                    networks.append(UNet.filled(shape, read_tensors(found[0], pickles=pickles)))
            else:
                networks.append(UNet.from_pretrained(folder / part))
            files += found[:1] or [folder / part / WEIGHTS]
        name = f"glide-{'masked' if masked else 'filtered'}"
        base, upsampler = networks
        return cls(base, upsampler, tokenizer, name=name, revision=sampled(folder, files), masked=masked)

    def excess(self, prompt: str) -> str:
        ids = self.tokenizer(prompt, verbose=False)["input_ids"]
        limit = self.base.positional_embedding.shape[0]
        return str(self.tokenizer.decode(ids[limit:], skip_special_tokens=True)) if len(ids) > limit else ""

    def passes(self, steps: int) -> int:
        return steps + len(fast27())

    @torch.no_grad()
    def paint(
        self,
        x: torch.Tensor,
        m: torch.Tensor,
        prompt: str,
        *,
        seeds: Sequence[int],
        options: EditOptions,
        progress: Progress,
    ) -> torch.Tensor:
        steps, scale = options.steps or self.steps, options.guidance_scale or self.guidance_scale
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        kept = 1 - F.max_pool2d(m[None, None], self.factor)  # a place that is edited at all is unknown
        if self.masked:
            kept = torch.zeros_like(kept)
        known = Known(F.avg_pool2d(x, self.factor), kept)
        small = self._drawn(known, prompt, steps, scale, generators, progress)
        known = Known(x, self._grown(kept, "nearest"))
        return self._finished(small, known, prompt, generators, lambda done: progress(steps + done))

    def _drawn(
        self,
        known: Known,
        prompt: str,
        steps: int,
        scale: float,
        generators: Sequence[torch.Generator],
        progress: Progress,
    ) -> torch.Tensor:
        """The base's pictures, with classifier-free guidance."""
        texts = [self._read(self.base, words).expand(len(generators), -1, -1) for words in (prompt, "")]
        text = torch.cat(texts)

        def predict(x_t: torch.Tensor, level: Level) -> Prediction:
            seen = known.shown(x_t).repeat(2, 1, 1, 1)
            told, untold = self.base(seen, seen.new_full((len(seen),), level.t), text).chunk(2)
            eps, share = predicted(told, x_t, level.alpha_bar)
            plain, _ = predicted(untold, x_t, level.alpha_bar)
            return plain + scale * (eps - plain), share

        return _sampled(predict, ladder(cosine_alpha_bar(), even(steps)), known, generators, progress)

    def _finished(
        self,
        small: torch.Tensor,
        known: Known,
        prompt: str,
        generators: Sequence[torch.Generator],
        progress: Progress,
    ) -> torch.Tensor:
        """The base's pictures at the upsampler's size; without guidance, from noise that is a little less."""
        low = self._grown(eight_bits(small), "bilinear")
        text = self._read(self.upsampler, prompt).expand(len(low), -1, -1)

        def predict(x_t: torch.Tensor, level: Level) -> Prediction:
            seen = torch.cat([known.shown(x_t), low], 1)
            output = self.upsampler(seen, seen.new_full((len(seen),), level.t), text)
            return predicted(output, x_t, level.alpha_bar, low)

        levels = ladder(linear_alpha_bar(), fast27())
        return _sampled(predict, levels, known, generators, progress, temperature=COLDER)

    def _grown(self, x: torch.Tensor, mode: str) -> torch.Tensor:
        return F.interpolate(x, scale_factor=float(self.factor), mode=mode)

    def _read(self, network: UNet, prompt: str) -> torch.Tensor:
        """What a network's text transformer makes of a prompt, 1 tokens width; the end token pads."""
        limit, end = network.positional_embedding.shape[0], self.tokenizer.eos_token_id
        ids = self.tokenizer(prompt, verbose=False)["input_ids"][:limit]
        tokens = torch.tensor([ids + [end] * (limit - len(ids))], device=network.positional_embedding.device)
        return network.read(tokens, tokens != end)


def _sampled(
    predict: Callable[[torch.Tensor, Level], Prediction],
    levels: Sequence[Level],
    known: Known,
    generators: Sequence[torch.Generator],
    progress: Progress,
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Ancestral sampling with the known part put right in every guess of the clean picture."""

    def draw() -> torch.Tensor:
        return torch.stack([torch.randn(known.x.shape[1:], generator=g) for g in generators]).to(known.x)

    x_t = draw() * temperature
    for done, level in enumerate(levels, start=1):
        eps, share = predict(x_t, level)
        x_0 = known.into(clean(x_t, eps, level.alpha_bar))
        mean, variance = posterior(x_t, x_0, level, share)
        x_t = mean if level.alpha_bar_next == 1 else mean + variance**0.5 * draw()
        progress(done)
    return x_t
