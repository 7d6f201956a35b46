"""CLIP as a guide: how far pictures are from a prompt, with a gradient (Blended Diffusion, section 4.1)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bld.models.networks import loading, read_network
from bld.reconstruct import has_bfloat16

TURN, SHIFT, TILT = 15.0, 0.1, 0.35  # degrees, share of the side, share of the half side
OFTEN = 0.7  # how likely each of the two is


class ClipGuide:
    """A CLIPModel with its tokenizer and preprocessing, frozen."""

    def __init__(self, clip: Any, tokenizer: Any, processor: Any) -> None:
        self.clip, self.tokenizer = clip.eval().requires_grad_(False), tokenizer
        self.side = int(clip.config.vision_config.image_size)
        self.mean = torch.tensor(processor.image_mean).view(3, 1, 1)
        self.std = torch.tensor(processor.image_std).view(3, 1, 1)

    @classmethod
    def load(cls, folder: Path) -> "ClipGuide":
        """The guide of a CLIPModel's folder. Raises ModelUnavailable if it is none."""
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        with loading(folder, "CLIP guide"):
            clip = read_network(folder, CLIPModel, torch.float32)
            clip.set_attn_implementation("eager")  # on a CPU its gradient takes a third less of a step
            return cls(
                clip,
                CLIPTokenizer.from_pretrained(folder),
                CLIPImageProcessorPil.from_pretrained(folder),
            )

    def excess(self, prompt: str) -> str:
        """The end of the prompt that it does not read."""
        ids, limit = self.tokenizer(prompt, verbose=False)["input_ids"], self.tokenizer.model_max_length
        return str(self.tokenizer.decode(ids[limit - 1 : -1])) if len(ids) > limit else ""

    @torch.no_grad()
    def text(self, prompt: str) -> torch.Tensor:
        """The prompt's direction: 1 d, of unit length. What the tokenizer does not read is cut."""
        words = self.tokenizer(prompt, truncation=True, return_tensors="pt").to(self.clip.device)
        return F.normalize(self.clip.get_text_features(**words).pooler_output)

    def image(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures' directions, n d, for x n 3 h w in [-1, 1]; differentiable.

        CLIP computes in half precision where the device does, as its authors run it.
        """
        seen = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        seen = ((seen + 1) / 2 - self.mean.to(x)) / self.std.to(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=has_bfloat16(x.device)):
            found: torch.Tensor = self.clip.get_image_features(pixel_values=seen).pooler_output
        return F.normalize(found.float())

    def distance(
        self, x: torch.Tensor, text: torch.Tensor, *, augmentations: int, generator: torch.Generator
    ) -> torch.Tensor:
        """The spherical distance of each picture from the prompt, the mean over its augmentations: n."""
        views = extended(x, augmentations, generator)  # augmentations * n
        return spherical(self.image(views), text).view(augmentations, len(x)).mean(0)


def spherical(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """2 arcsin^2(|a - b| / 2) for unit vectors, along the last axis: half the squared angle."""
    angle: torch.Tensor = 2 * ((a - b).norm(dim=-1) / 2).clamp(max=1 - 1e-6).arcsin()
    return angle.square() / 2


def extended(x: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Extending augmentations: x itself and count - 1 of its turned, shifted and tilted views.

    x: n 3 h w; returns count * n 3 h w, view by view. They keep guidance from painting adversarial noise.
    """
    if count == 1:
        return x
    n = len(x) * (count - 1)
    lines = [(torch.arange(side, device=x.device) + 0.5) / side * 2 - 1 for side in x.shape[-2:]]
    y, u = torch.meshgrid(*lines, indexing="ij")
    points = torch.stack([u, y, torch.ones_like(u)], -1).view(1, -1, 3)  # 1 hw 3
    where = points @ _homographies(n, generator).to(x).transpose(1, 2)
    grid = (where[..., :2] / where[..., 2:]).view(n, *x.shape[-2:], 2)
    moved = F.grid_sample(x.repeat(count - 1, 1, 1, 1), grid, padding_mode="border", align_corners=False)
    return torch.cat([x, moved])


def _homographies(n: int, generator: torch.Generator) -> torch.Tensor:
    """n random maps of the plane, n 3 3: a turn with a shift, and a tilt, each as often as OFTEN."""
    angle, shift_x, shift_y, tilt_x, tilt_y = (2 * torch.rand(5, n, generator=generator) - 1).unbind()
    turned, tilted = (torch.rand(2, n, generator=generator) < OFTEN).float().unbind()
    angle = torch.deg2rad(TURN * angle) * turned
    one, nil = torch.ones(n), torch.zeros(n)
    affine = torch.stack([
        angle.cos(), -angle.sin(), 2 * SHIFT * shift_x * turned,
        angle.sin(), angle.cos(), 2 * SHIFT * shift_y * turned, nil, nil, one,
    ], -1).view(n, 3, 3)  # fmt: skip
    tilt = torch.stack(
        [one, nil, nil, nil, one, nil, TILT * tilt_x * tilted, TILT * tilt_y * tilted, one], -1
    ).view(n, 3, 3)
    return affine @ tilt
