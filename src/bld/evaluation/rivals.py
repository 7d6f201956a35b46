"""What a user would run instead: diffusers' inpainting pipeline, and a loop as the paper's text reads.

Both get the same folder, crop, steps, seeds and ranker as our own editor, and end with the paper's
reconstruction of their first candidate. Neither uses the blending, sampling or tuning code of this package.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bld.evaluation.methods import Picture, facts, in_8_bits
from bld.evaluation.suite import Case
from bld.images import Photograph, from_srgb, from_tensor, resize_pixels
from bld.masks import FloatArray
from bld.models.base import LatentModel
from bld.options import EditOptions
from bld.rank import Ranker, rank
from bld.task import Task, check

TUNE_STEPS, TUNE_LR, TUNE_WEIGHT = 75, 1e-4, 100.0  # appendix of the paper


class Rival:
    """All candidates in one batch, all of them to the end; decode, rank, tune the decoder for the first."""

    name: str

    def __init__(
        self, model: LatentModel, ranker: Ranker | None, options: EditOptions, *, tuned: bool
    ) -> None:
        """model: of the Stable Diffusion family. tuned: whether the first candidate is reconstructed."""
        self.model: Any = model
        self.ranker, self.options, self.batch, self.tuned = ranker, options, options.candidates, tuned
        self.facts = {**facts(model, ranker, options), "tuned": tuned}

    def sample(self, task: Task, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """z_0 of every candidate, n c h w. x: 1 3 h w in [-1, 1]. m: 1 1 h w of 0 and 1. All on the model's
        device; the network computes in its own precision.
        """
        raise NotImplementedError

    def edit(self, photograph: Photograph, mask: FloatArray, case: Case) -> Sequence[Picture]:
        """The candidates, best first."""
        asked = EditOptions(
            candidates=self.batch, seed=case.seed, steps=self.options.steps,
            guidance_scale=self.options.guidance_scale, shrink=False, soft_mask=False,
        )  # fmt: skip
        task = check(self.model, photograph, mask, case.prompt, asked)
        vae, seen = self.model.vae, task.seen_mask()
        x = task.x().to(self.model.device)
        m = torch.from_numpy((seen > 0).astype(np.float32))[None, None].to(x)
        with torch.no_grad():
            z_0 = self.sample(task, x, m)
            decoded = vae.decode((z_0 / vae.config.scaling_factor).to(vae.dtype)).sample
        pictures = list(from_tensor(decoded))
        if self.ranker is not None:
            pasted = [from_tensor(x)[0] * (1 - seen[..., None]) + y * seen[..., None] for y in pictures]
            order = rank(self.ranker, pasted, seen, task.prompt, self.options.rank_by).order
            pictures, z_0 = [pictures[i] for i in order], z_0[list(order)]
        if self.tuned:
            pictures[0] = from_tensor(tune(vae, z_0[:1].float(), x, m))[0]
        return [placed(task, picture) for picture in pictures]


class InpaintPipeline(Rival):
    """diffusers' StableDiffusionInpaintPipeline with the text-to-image UNet of 4 channels."""

    name = "diffusers"

    def __init__(self, model: LatentModel, *rest: Any, **kinds: Any) -> None:
        from diffusers import StableDiffusionInpaintPipeline

        super().__init__(model, *rest, **kinds)
        parts = {part: getattr(self.model, part) for part in ("vae", "unet", "text_encoder", "tokenizer")}
        self.pipe = StableDiffusionInpaintPipeline(
            **parts, scheduler=_ddim(self.model), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
        self.pipe.set_progress_bar_config(disable=True)

    def sample(self, task: Task, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """As its documentation calls it, with a generator for each candidate."""
        z_0: torch.Tensor = self.pipe(
            task.prompt, image=x / 2 + 0.5, mask_image=m, height=x.shape[2], width=x.shape[3],
            num_inference_steps=task.options.steps, guidance_scale=task.options.guidance_scale,
            num_images_per_prompt=self.batch, strength=1.0, output_type="latent",
            generator=[torch.Generator().manual_seed(seed) for seed in task.seeds],
        ).images  # fmt: skip
        return z_0


class PlainLoop(Rival):
    """Algorithm 1 as one would write it down: a two-fold batch for guidance, DDIM by diffusers' scheduler."""

    name = "paper"

    def sample(self, task: Task, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        """Every candidate through every step."""
        model, scheduler = self.model, _ddim(self.model)
        scheduler.set_timesteps(task.options.steps)
        tokens = model.tokenizer(["", task.prompt], padding="max_length", return_tensors="pt").input_ids
        texts = model.text_encoder(tokens.to(x.device))[0].repeat_interleave(self.batch, 0)
        latents = model.vae.encode(x.to(model.vae.dtype)).latent_dist
        z_init = (latents.mode() * model.vae.config.scaling_factor).to(model.dtype)
        m_latent = torch.nn.functional.adaptive_max_pool2d(m, z_init.shape[-2:]).to(z_init)
        generators = [torch.Generator().manual_seed(seed) for seed in task.seeds]

        def noised(t: torch.Tensor) -> torch.Tensor:
            eps = torch.cat([torch.randn(z_init.shape, generator=g) for g in generators]).to(z_init)
            noisy: torch.Tensor = scheduler.add_noise(z_init.expand_as(eps), eps, t[None])
            return noisy

        timesteps = scheduler.timesteps
        z = noised(timesteps[0])
        for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
            both = model.unet(torch.cat([z, z]), t, encoder_hidden_states=texts).sample
            unguided, prompted = both.chunk(2)
            guided = unguided + task.options.guidance_scale * (prompted - unguided)
            z_fg = scheduler.step(guided, t, z).prev_sample
            z_bg = z_init if following is None else noised(following)
            z = z_fg * m_latent + z_bg * (1 - m_latent)
        return z


def tune(vae: Any, z_0: torch.Tensor, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """D*(z_0) after 75 steps of Adam on all weights of the decoder (section 4.2)."""
    decoder = copy.deepcopy(vae).float().requires_grad_(False)
    weights = list(decoder.decoder.requires_grad_(True).parameters())
    z, optimizer = z_0 / vae.config.scaling_factor, torch.optim.Adam(weights, lr=TUNE_LR)
    with torch.no_grad():
        x_hat = decoder.decode(z).sample
    for _ in range(TUNE_STEPS):
        y = decoder.decode(z).sample
        loss = ((y - x_hat) * m).square().mean() + TUNE_WEIGHT * ((y - x) * (1 - m)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        picture: torch.Tensor = decoder.decode(z).sample
    return picture


def placed(task: Task, picture: FloatArray) -> Picture:
    """The photograph with the model's picture in the crop, as the paper's decoder leaves it.

    In 8 bits, and in the photograph's own colours.
    """
    pixels = in_8_bits(task.photograph).copy()
    box = task.crop.box
    resized = resize_pixels(picture, (box.height, box.width))
    pixels[box.slices] = from_srgb(resized, task.photograph.icc_profile, np.uint8)
    return pixels


def _ddim(model: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(model.scheduler)
