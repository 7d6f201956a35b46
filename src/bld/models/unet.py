"""Stable Diffusion 1.x and 2.x, and the bundled model: any diffusers folder of that layout, LCMs too."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bld.errors import InvalidInput, ModelUnavailable
from bld.models.base import Level, Prompts, Trajectory
from bld.models.family import Condition, Family, cut
from bld.models.trajectory import PREDICTIONS, SOLVERS, Prediction, consistency, start
from bld.options import EditOptions

OTHER_NOISE = ("EDM", "FlowMatch")  # schedulers of networks that were trained on other noise than DDPM's


class UNetFamily(Family):
    """A family whose network is a UNet over the 1000 noise levels of DDPM.

    Whatever scheduler the folder names, the options choose the solver, DDIM as in the paper or another;
    betas, spacing and prediction type are the folder's. Two schedulers tell of a model distilled to jump,
    which gets a consistency model's steps: LCM's, and the ancestral one with trailing steps of turbo models.
    """

    unet: Any

    def __init__(self, folder: Path, **loading: Any) -> None:
        super().__init__(folder, **loading)
        channels, latent = self.unet.config.in_channels, self.vae.config.latent_channels
        if channels != latent:
            raise ModelUnavailable(
                f"{folder}: its UNet takes {channels} channels, not the latent's {latent}: an inpainting "
                "model, which is not for blending; use the text-to-image model it was made from"
            )
        kind, prediction = (self.scheduler.get(name) for name in ("_class_name", "prediction_type"))
        if prediction not in (None, *PREDICTIONS) or str(kind).startswith(OTHER_NOISE):
            raise ModelUnavailable(
                f"{folder}: its scheduler, {kind}, is of a UNet that predicts {prediction or 'noise'} on "
                "other noise levels than DDPM's, as EDM and flow matching do; what loads predicts "
                f"{', '.join(PREDICTIONS)} on those"
            )
        self.native_size = int(self.unet.config.sample_size) * self.latent_factor
        self.multiple = self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.lcm = self.scheduler.get("_class_name") == "LCMScheduler"
        self.turbo = (self.scheduler.get("_class_name"), self.scheduler.get("timestep_spacing")) == (
            "EulerAncestralDiscreteScheduler", "trailing",
        )  # fmt: skip
        if self.turbo:
            self.steps, self.guidance_scale = 1, 1.0
        if self.lcm:
            self.steps = 4
            self.guidance_scale = 8.0 if self.unet.config.time_cond_proj_dim else 1.0

    def network(self, z: torch.Tensor, timestep: float, condition: Condition) -> torch.Tensor:
        added = {key: condition[key] for key in ("text_embeds", "time_ids") if key in condition}
        output: torch.Tensor = self.unet(
            z,
            timestep,
            encoder_hidden_states=condition["text"],
            timestep_cond=condition.get("guidance"),
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]
        return output.float()

    def told(self, scale: float) -> Condition | None:
        """Some LCMs know of guidance: they are told its scale, counted from 0."""
        width = self.unet.config.time_cond_proj_dim
        if width is None:
            return None
        embedding = self.pipe.get_guidance_scale_embedding(torch.tensor([scale - 1.0]), width)
        return {"guidance": embedding.to(self.device, self.dtype)}

    def trajectory(self, prompt: Prompts, options: EditOptions, grid: tuple[int, int]) -> Trajectory:
        from diffusers import DDIMScheduler, LCMScheduler

        scheduler = (LCMScheduler if self.lcm else DDIMScheduler).from_config(self.scheduler)
        timesteps = self._timesteps(scheduler, options)
        signal = scheduler.alphas_cumprod.double()
        levels = [Level(float(signal[t].sqrt()), float((1 - signal[t]).sqrt())) for t in timesteps]
        predict = self.guided(prompt, options, grid, timesteps)
        prediction: Prediction = scheduler.config.prediction_type
        if self.lcm:
            boundary = scheduler.get_scalings_for_boundary_condition_discrete
            return consistency(levels, timesteps, predict, prediction, boundary)
        if self.turbo:
            return consistency(levels, timesteps, predict, prediction)
        return SOLVERS[options.scheduler](levels, timesteps, predict, prediction)

    def _timesteps(self, scheduler: Any, options: EditOptions) -> Sequence[int]:
        """The timesteps of the folder's schedule, without those that `strength` skips."""
        steps = options.steps
        if steps is None:
            raise ValueError("options must be resolved")
        limit = scheduler.config.num_train_timesteps
        if self.lcm:
            limit = scheduler.config.original_inference_steps
        if steps > limit:
            raise InvalidInput(f"--steps {steps}: {self.name} knows {limit} noise levels")
        scheduler.set_timesteps(steps)
        # Two slips of diffusers: "trailing" may add a timestep -1 (at 61), "leading" may begin one too late.
        known = scheduler.timesteps.tolist()[:steps]
        beyond = max(0, known[0] + 1 - scheduler.config.num_train_timesteps)
        return [t - beyond for t in known[start(steps, options.strength) :]]


class UNetModel(UNetFamily):
    """Stable Diffusion 1.x and 2.x: AutoencoderKL, UNet2DConditionModel and CLIP's text encoder."""

    pipeline = "StableDiffusionPipeline"
    parts = {
        "vae": "AutoencoderKL",
        "unet": "UNet2DConditionModel",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "scheduler": "DDIMScheduler",
    }
    beside = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    guidance_scale = 7.5
    text_encoder: Any
    tokenizer: Any
    words: tuple[tuple[str, ...], ...] = ()  # that were learnt, each as its tokens

    def __init__(self, folder: Path, **loading: Any) -> None:
        super().__init__(folder, **loading)
        self.guidance_scale = float(self.index.get("_bld_guidance_scale", self.guidance_scale))
        self.steps = int(self.index.get("_bld_steps", self.steps))
        self.whole = bool(self.index.get("_bld_whole", self.whole))
        if self.tokenizer.model_max_length > self.text_encoder.config.max_position_embeddings:
            raise ModelUnavailable(
                f"{folder}: cannot load its tokenizer: it does not say how long a prompt may be "
                "(tokenizer_config.json)"
            )

    def learn_word(self, file: Path) -> None:
        """Take a learnt word, of one or several tokens; prompts that have the file's name in them use it."""
        self.pipe.load_textual_inversion(file.parent, weight_name=file.name, token=file.stem)
        tokens, added = [file.stem], self.tokenizer.get_added_vocab()
        while (another := f"{file.stem}_{len(tokens)}") in added:
            tokens.append(another)
        self.words = (*self.words, tuple(tokens))
        self.text_encoder.eval().requires_grad_(False)

    def spelled(self, prompt: str) -> str:
        """The prompt with each learnt word as the tokens that it is made of, capitals or not.

        diffusers' `maybe_convert_prompt` misses words with capitals: the tokenizer gives them back in small.
        """
        if not self.words:
            return prompt
        words = sorted(self.words, key=lambda tokens: -len(tokens[0]))
        found = "|".join(f"({re.escape(tokens[0])})" for tokens in words)

        def tokens(at: re.Match[str]) -> str:
            return " ".join(words[(at.lastindex or 1) - 1])

        return re.sub(found, tokens, prompt, flags=re.IGNORECASE)

    def unread(self, prompt: str) -> str:
        """The words past the tokenizer's limit, as the tokenizer writes them back; "" if none."""
        return cut(self.tokenizer, self.spelled(prompt), self.tokenizer.model_max_length)

    @torch.no_grad()
    def embed(self, prompt: str) -> torch.Tensor:
        """The prompt for cross-attention: 1 tokens width. What `excess` returns is not read."""
        tokens = self.tokenizer(
            self.spelled(prompt),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        embedding: torch.Tensor = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        return embedding

    def condition(self, prompt: str, size: tuple[int, int]) -> Condition:
        return {"text": self.embed(prompt)}
