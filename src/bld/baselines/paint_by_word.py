"""PaintByWord++ (appendix of Avrahami, Lischinski and Fried 2022): a VQGAN's latent, optimised under CLIP.

That text gives Adam at 0.1, 500 iterations and one output; its code was never released. What it leaves open
is our choice, after Paint by Word (Bau et al. 2021) and VQGAN-CLIP (Crowson et al. 2022):
- a latent cell is free where the mask touches its pixels; the others keep the photograph's latents;
- the free cells begin with the photograph's own latents, and stay within the codebook's smallest and largest;
- cells are quantised in every iteration, with the gradient handed straight through;
- CLIP sees the masked picture in 16 augmented views, as in Blended Diffusion, with 0, a mid-grey, around it;
- the background's loss is that of local CLIP-guided diffusion, and weighs as much as CLIP's, as there.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bld.baselines.guide import ClipGuide
from bld.baselines.painter import Perceptual, Progress, background_distance
from bld.models.networks import filled_network, loading, read_network
from bld.models.weights import fingerprint, read_tensors, sampled
from bld.options import EditOptions, Reconstruction

LEARNING_RATE, AUGMENTATIONS = 0.1, 16

RELEASED: dict[str, Any] = {  # vqgan_imagenet_f16_16384
    "block_out_channels": (128, 128, 256, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 256,
    "vq_embed_dim": 256,
    "num_vq_embeddings": 16_384,
    "sample_size": 256,
    "down_block_types": ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
}

# taming-transformers' names and diffusers', applied one after the other
NAMES = (
    (r"\bblock_([12])\b", lambda m: f"resnets.{int(m[1]) - 1}"),
    (r"\battn_1\b", lambda m: "attentions.0"),
    (r"\bmid\b", lambda m: "mid_block"),
    (r"\bdown\.(\d+)", lambda m: f"down_blocks.{m[1]}"),
    (r"\bblock\b", lambda m: "resnets"),
    (r"\battn\b", lambda m: "attentions"),
    (r"\bnin_shortcut\b", lambda m: "conv_shortcut"),
    (r"\bnorm_out\b", lambda m: "conv_norm_out"),
    (r"\bdownsample\b", lambda m: "downsamplers.0"),
    (r"\bupsample\b", lambda m: "upsamplers.0"),
)
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def from_taming(weights: Mapping[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """The tensors of a VQGAN under diffusers' names; those of its losses are left out."""
    found = {}
    for name, tensor in weights.items():
        if name.startswith("loss."):
            continue
        name = re.sub(r"\bup\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        if ".attentions." in name:
            block, _, rest = name.partition(".attentions.")
            number, part, kind = rest.split(".")
            name = f"{block}.attentions.{number}.{ATTENTION[part]}.{kind}"
            tensor = tensor[..., 0, 0] if tensor.ndim == 4 else tensor  # a convolution of 1 by 1 there
        found[name] = tensor
    return found


class PaintByWord:
    """A VQGAN and CLIP as a painter."""

    name, steps, candidates, guidance_scale = "paintbyword", 500, 1, 1.0
    reconstruct: Reconstruction = "none"

    def __init__(
        self, vqgan: Any, guide: ClipGuide, *, revision: str, perceptual: Perceptual | None = None
    ) -> None:
        self.vqgan, self.guide, self.revision, self.perceptual = vqgan, guide, revision, perceptual
        self.side = int(vqgan.config.sample_size)
        self.excess = guide.excess

    @classmethod
    def load(
        cls, path: Path, guide: ClipGuide, *, pickles: bool = False, perceptual: Perceptual | None = None
    ) -> "PaintByWord":
        """A VQModel's folder, or the ImageNet VQGAN f16-16384 in taming-transformers' layout.

        Raises ModelUnavailable if it is neither, or not whole.
        """
        from diffusers import VQModel

        if path.is_dir():
            with loading(path, "VQGAN"):
                vqgan = read_network(path, VQModel, torch.float32)
            return cls(vqgan, guide, revision=fingerprint(path), perceptual=perceptual)
        weights = read_tensors(path, pickles=pickles)
        with loading(path, "VQGAN"):
            levels = len(RELEASED["block_out_channels"])
            vqgan = filled_network(VQModel, RELEASED, from_taming(weights, levels), torch.float32)
        return cls(vqgan, guide, revision=sampled(path.parent, [path]), perceptual=perceptual)

    def passes(self, steps: int) -> int:
        return steps

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
        steps, made = options.steps or self.steps, []
        for number, seed in enumerate(seeds):
            made.append(
                self._optimised(
                    x, m, prompt, steps, torch.Generator().manual_seed(seed),
                    lambda done, before=number: progress((before * steps + done) // len(seeds)),  # type: ignore[misc]
                )
            )  # fmt: skip
        return torch.cat(made)

    def _optimised(
        self,
        x: torch.Tensor,
        m: torch.Tensor,
        prompt: str,
        steps: int,
        generator: torch.Generator,
        progress: Progress,
    ) -> torch.Tensor:
        """The picture of one seed, which draws CLIP's augmentations."""
        d, entries = self.guide.text(prompt), self.vqgan.quantize.embedding.weight
        low, high = (edge(0).values.view(1, -1, 1, 1) for edge in (entries.min, entries.max))
        with torch.no_grad():
            z_init = self.vqgan.encode(x).latents
        free = F.adaptive_max_pool2d(m[None, None], z_init.shape[-2:])
        z = z_init.clone().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=LEARNING_RATE)
        for done in range(steps):
            y = self._decoded(z * free + z_init * (1 - free))
            far = self.guide.distance(y * m, d, augmentations=AUGMENTATIONS, generator=generator)
            loss = (far + background_distance(y, x, m, self.perceptual)).sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            adam.step()
            with torch.no_grad():
                z.clamp_(low, high)
            progress(done + 1)
        with torch.no_grad():
            return self._decoded(z * free + z_init * (1 - free))

    def _decoded(self, z: torch.Tensor) -> torch.Tensor:
        """D of the nearest entries of the codebook; the gradient passes them by."""
        decoded: torch.Tensor = self.vqgan.decode(z).sample
        return decoded
