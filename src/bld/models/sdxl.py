"""Stable Diffusion XL and what was distilled from it: turbo, lightning, LCM."""

from typing import Any

import torch

from bld.models.family import Condition, cut
from bld.models.unet import UNetFamily


class StableDiffusionXL(UNetFamily):
    """Two text encoders, and the sizes of picture and crop beside the timestep."""

    pipeline = "StableDiffusionXLPipeline"
    parts = {
        "vae": "AutoencoderKL",
        "unet": "UNet2DConditionModel",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "scheduler": "DDIMScheduler",
    }
    guidance_scale = 5.0
    tokenizer: Any

    def unread(self, prompt: str) -> str:
        return cut(self.tokenizer, prompt, self.tokenizer.model_max_length)

    def condition(self, prompt: str, size: tuple[int, int]) -> Condition:
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompt, device=self.device, do_classifier_free_guidance=False
        )
        return {"text": text, "text_embeds": pooled, "time_ids": self._time_ids(size).to(text)}

    def null(self, negative_prompt: str, size: tuple[int, int]) -> Condition:
        """An empty negative prompt is no prompt at all where the model was trained so."""
        condition = self.condition(negative_prompt, size)
        if not negative_prompt and self.index.get("force_zeros_for_empty_prompt", True):
            for key in ("text", "text_embeds"):
                condition[key] = torch.zeros_like(condition[key])
        return condition

    @staticmethod
    def _time_ids(size: tuple[int, int]) -> torch.Tensor:
        """The picture is whole and of its own size: original size, the crop's corner, target size."""
        return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)
