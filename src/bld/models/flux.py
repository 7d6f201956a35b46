"""FLUX.1: dev, which is told its guidance, and schnell, which needs none."""

from typing import Any

import torch

from bld.models.family import Condition, cut
from bld.models.flow import FlowFamily


class Flux(FlowFamily):
    """CLIP for the whole prompt and T5 for its words; latents go in as tokens of 2x2 cells."""

    pipeline = "FluxPipeline"
    parts = {
        "vae": "AutoencoderKL",
        "transformer": "FluxTransformer2DModel",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5TokenizerFast",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }
    tokenizer_2: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.distilled = not self.transformer.config.guidance_embeds  # schnell
        self.steps, self.guidance_scale = (4, 1.0) if self.distilled else (28, 3.5)
        self.tokens = 256 if self.distilled else 512  # of T5's

    def unread(self, prompt: str) -> str:
        return cut(self.tokenizer_2, prompt, self.tokens)

    def condition(self, prompt: str, size: tuple[int, int]) -> Condition:
        text, pooled, _ = self.pipe.encode_prompt(
            prompt, None, device=self.device, max_sequence_length=self.tokens
        )
        return {"text": text, "pooled": pooled}

    def told(self, scale: float) -> Condition | None:
        """dev is told the scale; schnell, which was trained with none, runs twice where it is not 1."""
        return None if self.distilled else {"guidance": torch.tensor([scale], device=self.device)}

    def network(self, z: torch.Tensor, timestep: float, condition: Condition) -> torch.Tensor:
        n, channels, height, width = z.shape
        tokens = self.pipe._pack_latents(z, n, channels, height, width)
        places = self.pipe._prepare_latent_image_ids(n, height // 2, width // 2, self.device, self.dtype)
        output = self.transformer(
            hidden_states=tokens,
            timestep=self.times(timestep / 1000, n),
            guidance=condition.get("guidance"),
            pooled_projections=condition["pooled"],
            encoder_hidden_states=condition["text"],
            txt_ids=torch.zeros(condition["text"].shape[1], 3, device=self.device, dtype=self.dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        pixels = (height * self.latent_factor, width * self.latent_factor)
        cells: torch.Tensor = self.pipe._unpack_latents(output, *pixels, self.latent_factor)
        return cells.float()
