"""Stable Diffusion 3 and 3.5."""

from typing import Any

import torch

from bld.models.family import Condition, cut
from bld.models.flow import FlowFamily

TOKENS = 256  # of T5's; the two CLIP encoders read the first 77


class StableDiffusion3(FlowFamily):
    """Two CLIP text encoders and T5, which a folder may leave out; the transformer makes its own patches."""

    pipeline = "StableDiffusion3Pipeline"
    parts = {
        "vae": "AutoencoderKL",
        "transformer": "SD3Transformer2DModel",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5TokenizerFast",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }
    optional = ("text_encoder_3", "tokenizer_3")
    guidance_scale = 7.0
    steps = 28
    tokenizer: Any
    tokenizer_3: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        places = self.transformer.config.pos_embed_max_size * self.patch  # latent cells, along one side
        self.max_aspect = min(self.max_aspect, places * self.latent_factor // self.native_size)

    def sigmas(self, steps: int) -> list[float] | None:
        return None

    def unread(self, prompt: str) -> str:
        if self.tokenizer_3 is None:
            return cut(self.tokenizer, prompt, self.tokenizer.model_max_length)
        return cut(self.tokenizer_3, prompt, TOKENS)

    def condition(self, prompt: str, size: tuple[int, int]) -> Condition:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompt, None, None, device=self.device, do_classifier_free_guidance=False,
            max_sequence_length=TOKENS,
        )  # fmt: skip
        return {"text": text, "pooled": pooled}

    def network(self, z: torch.Tensor, timestep: float, condition: Condition) -> torch.Tensor:
        output: torch.Tensor = self.transformer(
            hidden_states=z,
            timestep=self.times(timestep, len(z)),
            encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]
        return output.float()
