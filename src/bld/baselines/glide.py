"""GLIDE-filtered (Nichol et al. 2022): inpainting by a base of 64 px that reads a text, and its upsampler.

The schedule, the guidance and the order of things are those of the released notebook for inpainting. Beside
it GLIDE-masked, which is shown nothing of the photograph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bld.baselines.checkpoints import read_checkpoint
from bld.baselines.diffusion import (
    Level,
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
from bld.models.weights import sampled
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
                    networks.append(UNet.filled(shape, read_checkpoint(found[0], pickles=pickles)))
            else:
                networks.append(UNet.from_pretrained(folder / part))
            files += found[:1] or [folder / part / WEIGHTS]
        name = f"glide-{'masked' if masked else 'filtered'}"
        base, upsampler = networks
        return cls(base, upsampler, tokenizer, name=name, revision=sampled(folder, files), masked=masked)

    def excess(self, prompt: str) -> str:
        ids = self.tokenizer(prompt, verbose=False)["input_ids"]
        limit = self.base.positional_embedding.shape[0]
        return str(self.tokenizer.decode(ids[limit:])) if len(ids) > limit else ""

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
        small = F.avg_pool2d(x, self.factor)
        kept = 1 - F.max_pool2d(m[None, None], self.factor)  # a place that is edited at all is unknown
        base, fine = Known(small, kept), Known(x, F.interpolate(kept, scale_factor=float(self.factor)))
        if self.masked:
            base, fine = (Known(k.x, torch.zeros_like(k.m)) for k in (base, fine))
        told, untold = self._read(prompt), self._read("")
        text = torch.cat([told.expand(len(seeds), -1, -1), untold.expand(len(seeds), -1, -1)])

        def guided(x_t: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor | None]:
            seen = base.shown(x_t).repeat(2, 1, 1, 1)
            output = self.base(seen, torch.full((len(seen),), level.t), text)
            with_text, without = output.chunk(2)
            eps, share = predicted(with_text, x_t, level.alpha_bar)
            plain, _ = predicted(without, x_t, level.alpha_bar)
            return plain + scale * (eps - plain), share

        levels = ladder(cosine_alpha_bar(), even(steps))
        low = eight_bits(_sampled(guided, levels, base, generators, progress, 1.0))
        low = F.interpolate(low, scale_factor=float(self.factor), mode="bilinear")
        words = self._read(prompt, self.upsampler).expand(len(seeds), -1, -1)

        def finer(x_t: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor | None]:
            seen = torch.cat([fine.shown(x_t), low], 1)
            output = self.upsampler(seen, torch.full((len(seen),), level.t), words)
            return predicted(output, x_t, level.alpha_bar, low)

        levels = ladder(linear_alpha_bar(), fast27())
        return _sampled(finer, levels, fine, generators, lambda done: progress(steps + done), COLDER)

    def _read(self, prompt: str, network: UNet | None = None) -> torch.Tensor:
        """What a network's text transformer makes of a prompt, 1 tokens width; the end token pads."""
        network = network or self.base
        limit, end = network.positional_embedding.shape[0], self.tokenizer.eos_token_id
        ids = self.tokenizer(prompt, verbose=False)["input_ids"][:limit]
        tokens = torch.tensor([ids + [end] * (limit - len(ids))])
        return network.read(tokens, tokens != end)


def _sampled(
    predict: Any,
    levels: Sequence[Level],
    known: Known,
    generators: Sequence[torch.Generator],
    progress: Progress,
    temperature: float,
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
