"""A small VQGAN, for PaintByWord++: the run's autoencoder with a codebook for its latents.

The published ones also have an adversary, which makes textures up; this one has none.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel

from bld.training.autoencoder import crops, reconstruction_loss
from bld.training.composites import Compositor
from bld.training.loop import Run, half_precision, psnr, seeded
from bld.training.recipes import Recipe, Vqgan

log = logging.getLogger(__name__)


def build(recipe: Vqgan, autoencoder: AutoencoderKL) -> VQModel:
    """A VQModel of the autoencoder's layers: what it gives unquantised is what that one gives."""
    c, width = autoencoder.config, autoencoder.config.latent_channels
    vqgan = VQModel(
        latent_channels=width,
        num_vq_embeddings=recipe.entries,
        block_out_channels=c.block_out_channels,
        layers_per_block=c.layers_per_block,
        norm_num_groups=c.norm_num_groups,
        sample_size=c.sample_size,
        scaling_factor=1.0,
        mid_block_add_attention=c.mid_block_add_attention,
        down_block_types=c.down_block_types,
        up_block_types=c.up_block_types,
    )
    weights: dict[str, Any] = dict(autoencoder.state_dict())
    # Of its two 1x1 convolutions in a row, which mix mean and variance, one makes the mean alone.
    last, mixed = weights.pop("encoder.conv_out.weight"), weights.pop("quant_conv.weight")[:width, :, 0, 0]
    bias, shift = weights.pop("encoder.conv_out.bias"), weights.pop("quant_conv.bias")[:width]
    weights["encoder.conv_out.weight"] = torch.einsum("om,mihw->oihw", mixed, last)
    weights["encoder.conv_out.bias"] = mixed @ bias + shift
    weights["quant_conv.weight"] = torch.eye(width)[..., None, None]
    weights["quant_conv.bias"] = torch.zeros(width)
    weights["quantize.embedding.weight"] = vqgan.quantize.embedding.weight
    vqgan.load_state_dict(weights)
    return vqgan.requires_grad_(True)


@torch.no_grad()
def fill_codebook(vqgan: VQModel, x: torch.Tensor, generator: torch.Generator) -> None:
    """Make the latents of pictures, x: n 3 s s in [-1, 1], the codebook's entries: some, then their means.

    Entries that begin anywhere else are hardly ever the nearest, and then never learn.
    """
    z = (
        torch.cat([vqgan.encode(part).latents for part in torch.split(x, 32)])
        .permute(0, 2, 3, 1)
        .flatten(0, 2)
    )
    entries = vqgan.quantize.embedding.weight
    entries.copy_(z[torch.randint(len(z), (len(entries),), generator=generator)])
    for _ in range(5):  # of k-means
        nearest = torch.cat([torch.cdist(part, entries).argmin(1) for part in torch.split(z, 4096)])
        count = torch.bincount(nearest, minlength=len(entries)).unsqueeze(1)
        total = torch.zeros_like(entries).index_add_(0, nearest, z)
        entries.copy_(torch.where(count > 0, total / count.clamp(min=1), entries))


def train(recipe: Recipe, compositor: Compositor, autoencoder: AutoencoderKL, folder: Path) -> None:
    """Train (or go on training) the model; writes `folder/vqgan`."""
    torch.manual_seed(recipe.seed)
    generator, r = seeded(recipe.seed + 6), recipe.vqgan
    vqgan = build(r, autoencoder).to(torch.get_default_device(), memory_format=torch.channels_last)
    if not (folder / "vqgan.pt").exists():
        fill_codebook(vqgan, compositor.draw(256, generator).image * 2 - 1, generator)
    run = Run(
        folder, "vqgan", {"vqgan": vqgan}, generator, r.samples, r.batch, r.learning_rate,
        limits=recipe.limits,
    )  # fmt: skip

    def step() -> torch.Tensor:
        x, alpha = crops(compositor, r.batch, r.crop, generator)
        with half_precision():
            z = vqgan.encode(x.to(memory_format=torch.channels_last)).latents.float()
            decoded = vqgan.decode(z)
        y, commitment = decoded.sample.float(), decoded.commit_loss.float()
        total: torch.Tensor = reconstruction_loss(y, x, 1 + alpha) + 0.1 * commitment
        return total

    run.train(step)
    run.averaged("vqgan")
    images = compositor.draw(64, generator).image
    with torch.no_grad():
        z = vqgan.encode(images * 2 - 1).latents
        decoded, used = vqgan.decode(z).sample, len(vqgan.quantize(z)[2][2].unique())
    log.info("vqgan: %.2f dB on composites, %d entries in use", psnr(decoded / 2 + 0.5, images), used)
    run.write("vqgan", vqgan)
