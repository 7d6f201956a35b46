"""The text-to-image model: a small UNet that reads a finished text encoder, trained on cached latents."""

import json
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from bld.errors import InvalidInput
from bld.training.captions import Captions
from bld.training.composites import Compositor
from bld.training.loop import Run, half_precision, on_cpu, seeded
from bld.training.recipes import SCHEDULER, Recipe, TextToImage
from bld.training.vocabulary import Name, styles

log = logging.getLogger(__name__)
ALIKE = 63  # latents beside its own that a picture's caption may mean
REFILL = 32  # composites at a time, or as many as a batch has


def build_unet(recipe: TextToImage, size: int, text_width: int) -> UNet2DConditionModel:
    """An untrained UNet. Beside its cross-attention, a prompt scales and shifts every block.

    At the last timestep there is no picture yet, so no query for cross-attention to answer: there, what
    the prompt says of the layout comes in beside the timestep. The blocks start as diffusers makes them:
    with their last layers at zero, as is common, names took three times as long to show.
    """
    return UNet2DConditionModel(
        sample_size=size // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=recipe.channels,
        layers_per_block=recipe.layers,
        norm_num_groups=recipe.groups,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=tuple(c // 32 for c in recipe.channels),  # the number of heads, 32 wide each
        addition_embed_type="text",
        addition_embed_type_num_heads=text_width // 32,
        resnet_time_scale_shift="scale_shift",
    )


def noise_levels() -> tuple[torch.Tensor, torch.Tensor]:
    """(signal, sigma) of the training timesteps 0 to 999; the last has no signal at all."""
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod
    return alphas.sqrt(), (1 - alphas).clamp(min=0).sqrt()


class Timesteps:
    """Draws timesteps: 65 % with log-SNR from N(mean, 2), 20 % from the noisiest tenth, 15 % evenly.

    In the noisiest tenth (log-SNR under -6) there is but the prompt to tell a shape by; from there to 0 a
    latent of 16x16 is decided, all but its texture. There the mean is -2; where an object has more cells,
    they tell it at more noise, so the mean falls as their number grows. Log-SNRs are spread over each
    batch: one draw from each of as many equal shares as it has pictures. side: of the latent, cells.
    """

    def __init__(self, side: int) -> None:
        self.mean = -2 - math.log(max(side, 16) / 16)
        signal, sigma = noise_levels()
        self.log_snr = 2 * (signal.clamp(min=1e-4).log() - sigma.clamp(min=1e-4).log())

    def draw(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        share = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        wanted = self.mean + 2 * torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6))
        nearest = 1000 - torch.searchsorted(self.log_snr.flip(0).contiguous(), wanted)
        even = torch.randint(1000, (batch,), generator=generator)
        kind = torch.randperm(batch, generator=generator) / batch
        rest = torch.where(kind < 0.85, 900 + even // 10, even)
        return torch.where(kind < 0.65, nearest.clamp(0, 999), rest)


class LatentBank:
    """A ring of encoded composites, so that each costs one encoding and serves several steps.

    z: n 4 s s latents; region: n 1 s s, where the object stands; subject: n, what its captions are of.
    """

    def __init__(self, vae: AutoencoderKL, compositor: Compositor, words: Captions, capacity: int) -> None:
        side = compositor.size // 8
        self.vae, self.compositor, self.words = vae, compositor, words
        self.z = torch.zeros(capacity, 4, side, side)
        self.region = torch.zeros(capacity, 1, side, side)
        self.subject = torch.zeros(capacity, dtype=torch.int64)
        self.drawn = 0

    @torch.no_grad()
    def refill(self, count: int, generator: torch.Generator) -> None:
        """Draw and encode `count` composites over the oldest ones."""
        fresh = self.compositor.draw(count, generator)
        where = (self.drawn + torch.arange(count)) % len(self.z)
        with half_precision():
            self.z[where] = self.vae.encode(fresh.image * 2 - 1).latent_dist.mean.float()
        shape = F.avg_pool2d(torch.maximum(fresh.alpha, 0.5 * fresh.shadow), 8)
        self.region[where] = F.max_pool2d(shape, 3, 1, 1)  # one cell wider than the object
        self.subject[where] = self.words.subject(fresh.name, fresh.colour, fresh.flat)
        self.drawn += count

    def draw(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pick = torch.randint(min(self.drawn, len(self.z)), (batch,), generator=generator)
        return self.z[pick], self.region[pick], self.subject[pick]

    def alike(
        self, subject: torch.Tensor, anything: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Latents that the same caption could stand for: ALIKE of each subject, or of all where `anything`.

        subject: b; anything: b, bool. Returns b ALIKE 4 s s.
        """
        fits = (self.subject[: self.drawn] == subject[:, None]) | anything[:, None]
        return self.z[torch.multinomial(fits.float(), ALIKE, replacement=True, generator=generator)]


def expected(
    z: torch.Tensor, alike: torch.Tensor, noisy: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """E[z | noisy, caption] over z itself and latents that the caption fits as well: b 4 s s.

    What the network should answer is this mean, not the one z that made the noisy latent. Where noise
    leaves nothing of z, that z is a target of much chance, and a shape takes long to show in it (stable
    target fields; Xu, Tong and Jaakkola 2023). With little noise the mean is z.
    """
    pool = torch.cat([z[:, None], alike], 1)
    apart = (noisy[:, None] - signal[:, None] * pool).square().sum((2, 3, 4))
    weight = (-apart / (2 * sigma.view(-1, 1).square())).softmax(1)
    mean: torch.Tensor = (weight[..., None, None, None] * pool).sum(1)
    return mean


class Balance:
    """Weights errors so that every noise level counts the same, whatever the error usual at it.

    With much noise the target is nearly certain and the error small, and there the layout is decided; among
    errors ten times larger it would be the last thing learnt. EDM2's uncertainty weighting (Karras et al.
    2024, section 2.2), with running means of the error over 20 spans of timesteps in place of a network.
    """

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(20), torch.zeros(20)

    def __call__(self, error: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The weighted mean of errors, b, at timesteps, b; about as large as their mean.

        An error that is no number is left out of the running means: it would stay in all later ones.
        """
        span, found = timestep // 50, error.detach()
        finite = found.isfinite()
        self.total.mul_(0.99).index_add_(0, span, torch.where(finite, found, 0))
        self.count.mul_(0.99).index_add_(0, span, finite.to(found.dtype))
        usual = self.total[span] / self.count[span]
        weighted: torch.Tensor = (error / usual).mean() * (self.total.sum() / self.count.sum())
        return weighted


def v_loss(
    unet: Callable[..., tuple[torch.Tensor]],
    text: torch.Tensor,
    z: torch.Tensor,
    alike: torch.Tensor,
    region: torch.Tensor,
    timestep: torch.Tensor,
    levels: tuple[torch.Tensor, torch.Tensor],
    generator: torch.Generator,
) -> torch.Tensor:
    """Squared error of v = signal * eps - sigma * z, b, weighted up to 4 : 1 towards where objects stand.

    The weight is the batch's: one that followed each picture's own object would teach that objects are
    larger than they are, for the best answer to a weighted error is a weighted mean.
    """
    signal, sigma = (level[timestep].view(-1, 1, 1, 1) for level in levels)
    eps = torch.randn(z.shape, generator=generator)
    noisy = (signal * z + sigma * eps).to(memory_format=torch.channels_last)
    z = expected(z, alike, noisy, signal, sigma)
    eps = (noisy - signal * z) / sigma
    v = unet(noisy, timestep, text, return_dict=False)[0].float()
    weight = 0.25 + 0.75 * region.mean(0)
    return ((v - (signal * eps - sigma * z)).square() * weight / weight.mean()).mean((1, 2, 3))


def check_sizes(recipe: Recipe, model: Path) -> None:
    """Raise InvalidInput unless `model` is a model folder whose UNet has the recipe's sizes."""
    r = recipe.text_to_image
    wanted = {
        "sample_size": recipe.size // 8,
        "block_out_channels": list(r.channels),
        "layers_per_block": list(r.layers) if isinstance(r.layers, tuple) else r.layers,
        "addition_embed_type": "text",
        "cross_attention_dim": recipe.text_encoder.width,
    }
    try:
        unet = json.loads((model / "unet" / "config.json").read_text(encoding="utf-8"))
        found = {key: unet[key] for key in wanted}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"cannot start from {model}: not the folder of a model ({error})") from error
    if found != wanted:
        raise InvalidInput(f"cannot start from {model}: its sizes are not those of the recipe")


def load_weights(model: Path, unet: UNet2DConditionModel, text_encoder: Path) -> None:
    """Put the weights of the model folder, which `check_sizes` has passed, into the UNet.

    If the run has another text encoder than the model, what reads the prompt keeps its fresh weights.
    """
    weights = UNet2DConditionModel.from_pretrained(model / "unet").state_dict()
    file = "model.safetensors"
    if (text_encoder / file).read_bytes() != (model / "text_encoder" / file).read_bytes():
        reads = ("attn2.to_k", "attn2.to_v", "add_embedding")
        weights = {key: value for key, value in weights.items() if not any(part in key for part in reads)}
    unet.load_state_dict(weights, strict=False)


@torch.no_grad()
def read_captions(text_encoder: CLIPTextModel, words: Captions) -> torch.Tensor:
    """What the finished text encoder says of every caption, once and for all: n tokens width."""
    return torch.cat([text_encoder(ids).last_hidden_state for ids in torch.split(words.ids, 256)])


def train(
    recipe: Recipe,
    compositor: Compositor,
    vae: AutoencoderKL,
    names: tuple[Name, ...],
    folder: Path,
    start_from: Path | None = None,
) -> None:
    """Train (or go on training) the UNet to the text encoder in `folder`; writes `folder/unet`.

    `start_from` is a model folder of the same recipe whose weights a fresh run begins with; a run that has
    a checkpoint goes on from that.
    """
    torch.manual_seed(recipe.seed)
    generator = seeded(recipe.seed + 2)
    r, device = recipe.text_to_image, torch.get_default_device()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").to(device).eval()
    words = Captions(names, compositor.sprites.keywords, tokenizer, styles(flat=recipe.flat))
    texts, levels = read_captions(text_encoder, words), noise_levels()
    timesteps, balance = Timesteps(recipe.size // 8), Balance()
    unet = build_unet(r, recipe.size, recipe.text_encoder.width)
    unet = unet.to(device, memory_format=torch.channels_last)
    if start_from and not (folder / "text_to_image.pt").exists():
        load_weights(start_from, unet, folder / "text_encoder")
    run = Run(
        folder, "text_to_image", {"unet": unet}, generator, r.samples, r.batch, r.learning_rate,
        limits=recipe.limits,
    )  # fmt: skip
    denoise: Any = torch.compile(unet) if r.compiled else unet
    bank = LatentBank(vae, compositor, words, r.bank)
    owed, refill = 0.0, max(REFILL, r.batch)
    while bank.drawn < min(r.bank, max(4096, r.bank // 4)):
        bank.refill(refill, generator)

    def step() -> torch.Tensor:
        nonlocal owed
        owed += r.batch / r.reuse
        if owed >= refill:
            bank.refill(refill, generator)
            owed -= refill
        z, region, subject = bank.draw(r.batch, generator)
        caption, timestep = words.draw(subject, generator), timesteps.draw(r.batch, generator)
        empty = words.ids[caption, 1] == tokenizer.eos_token_id
        alike = bank.alike(subject, empty, generator)
        with half_precision():
            error = v_loss(denoise, texts[caption], z, alike, region, timestep, levels, generator)
        return balance(error, timestep)

    # On a CPU the fused attention kernels run one small product at a time: a third slower in all.
    with sdpa_kernel(SDPBackend.MATH) if on_cpu() else nullcontext():
        run.train(step)
    run.write("scheduler", DDIMScheduler(**SCHEDULER))
    run.write("unet", run.averaged("unet"))  # the last one: where it is, the part is done
