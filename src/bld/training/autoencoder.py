"""The autoencoder of the bundled model: an f8 AutoencoderKL, trained from nothing."""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from bld.training.composites import Compositor
from bld.training.loop import Run, begin_with, half_precision, psnr, seeded
from bld.training.recipes import Autoencoder, Recipe

log = logging.getLogger(__name__)


def build(recipe: Autoencoder, size: int) -> AutoencoderKL:
    """An untrained autoencoder in the stock layout; latents are normalised later, inside its weights."""
    depth = len(recipe.channels)
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        norm_num_groups=recipe.groups,
        sample_size=size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
    )


def crops(
    compositor: Compositor, batch: int, side: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(crops, their object coverage): two from each composite, one near the object, one anywhere."""
    drawn = compositor.draw(batch // 2, generator)
    pictures, alpha = torch.cat([drawn.image, drawn.alpha], 1), drawn.alpha[:, 0]
    size, n = compositor.size, len(alpha)
    line = torch.arange(size, dtype=torch.float32)
    mass = alpha.sum((1, 2)).clamp(min=1e-6)
    middle = torch.stack([alpha.sum(2) @ line, alpha.sum(1) @ line], 1) / mass[:, None]
    shift = torch.randn(n, 2, generator=generator) * side / 6 - side / 2
    near = (middle + shift).round().clamp(0, size - side).long()
    anywhere = torch.randint(size - side + 1, (n, 2), generator=generator)
    corners = torch.cat([near, anywhere]).tolist()
    stacked = torch.stack(
        [pictures[i % n, :, y : y + side, x : x + side] for i, (y, x) in enumerate(corners)]
    )
    return stacked[:, :3] * 2 - 1, stacked[:, 3:]  # b 3 s s, [-1,1]; b 1 s s, [0,1]


def laplacian(x: torch.Tensor, levels: int = 3) -> list[torch.Tensor]:
    """Band-pass levels of x, fine to coarse."""
    bands = []
    for _ in range(levels):
        small = F.avg_pool2d(x, 2)
        bands.append(x - F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False))
        x = small
    return bands


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted L1 in pixels and, by half, in three Laplacian bands, which plain L1 leaves soft."""
    pixel = ((y - x).abs() * weight).mean()
    bands = sum((a - b).abs().mean() for a, b in zip(laplacian(y), laplacian(x), strict=True))
    return pixel + 0.5 * bands


def noisy(z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """z with up to a quarter of noise in one half of the batch: what a UNet gives is not exact either."""
    tau = torch.rand(len(z), 1, 1, 1, generator=generator).to(z) * 0.25
    tau[: len(z) // 2] = 0
    spread = z.detach().std((0, 2, 3), keepdim=True)
    noise = torch.randn(z.shape, generator=generator).to(z)
    return (1 - tau**2).sqrt() * z + tau * spread * noise


def loss(
    vae: AutoencoderKL, x: torch.Tensor, alpha: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Reconstruction, a light KL, noise-tolerant decoding (half the batch) and scale equivariance."""
    posterior = vae.encode(x).latent_dist
    z: torch.Tensor = posterior.mean.float()
    y: torch.Tensor = vae.decode(noisy(z, generator)).sample.float()
    quarter = max(1, len(z) // 4)
    small: torch.Tensor = vae.decode(F.avg_pool2d(z[-quarter:], 2)).sample.float()
    equivariance = (small - F.avg_pool2d(x[-quarter:], 2)).abs().mean()
    kl: torch.Tensor = 0.5 * (z**2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return reconstruction_loss(y, x, 1 + alpha) + 0.25 * equivariance + 5e-4 * kl


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold the latents' mean and deviation into the quant convolutions, so that they are N(0,1) per
    channel with scaling_factor 1; decoding is unchanged. images: n 3 h w, [-1,1].
    """
    z = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(images, 32)])
    mean, deviation = z.mean((0, 2, 3)), z.std((0, 2, 3))
    channels = len(mean)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    encode.weight[:channels] /= deviation[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / deviation
    encode.bias[channels:] -= 2 * deviation.log()
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= deviation[None, :, None, None]


def train(
    recipe: Recipe, compositor: Compositor, folder: Path, start_from: Path | None = None
) -> AutoencoderKL:
    """Train (or go on training) the autoencoder; writes `folder/autoencoder`.

    `start_from` is the folder of an autoencoder of the recipe's sizes whose weights a fresh run begins with.
    """
    torch.manual_seed(recipe.seed)
    generator = seeded(recipe.seed + 1)
    r = recipe.autoencoder
    vae = build(r, recipe.size).to(torch.get_default_device(), memory_format=torch.channels_last)
    if start_from and not (folder / "autoencoder.pt").exists():
        begin_with(vae, start_from)
    run = Run(
        folder, "autoencoder", {"vae": vae}, generator, r.samples, r.batch, r.learning_rate,
        limits=recipe.limits,
    )  # fmt: skip

    def step() -> torch.Tensor:
        x, alpha = crops(compositor, r.batch, r.crop, generator)
        with half_precision():
            return loss(vae, x.to(memory_format=torch.channels_last), alpha, generator)

    run.train(step)
    run.averaged("vae")
    images = torch.cat([compositor.draw(32, generator).image for _ in range(16)]) * 2 - 1
    normalise_latents(vae, images)
    log.info("autoencoder: %.2f dB on composites", quality(vae, compositor, generator))
    run.write("autoencoder", vae)
    return vae


@torch.no_grad()
def quality(vae: AutoencoderKL, compositor: Compositor, generator: torch.Generator) -> float:
    """PSNR of the round trip over 64 fresh composites, dB."""
    images = compositor.draw(64, generator).image
    decoded = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample
    return psnr(decoded / 2 + 0.5, images)
