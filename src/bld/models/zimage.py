"""Z-Image and Z-Image-Turbo."""

from typing import Any

import torch

from bld.models.family import Condition
from bld.models.flow import FlowFamily
from bld.models.flux2 import beyond

TOKENS = 512


class ZImage(FlowFamily):
    """Qwen reads the prompt; the transformer takes lists of pictures and of texts, each as long as it is.

    Its authors count guidance from 0: their scale 5 is 6 here, as every other family has it, and 1 is none.
    """

    pipeline = "ZImagePipeline"
    parts = {
        "vae": "AutoencoderKL",
        "transformer": "ZImageTransformer2DModel",
        "text_encoder": "Qwen3Model",
        "tokenizer": "Qwen2Tokenizer",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }
    guidance_scale = 6.0
    tokenizer: Any

    def unread(self, prompt: str) -> str:
        return beyond(self.tokenizer, prompt, TOKENS, thinking=True)

    def condition(self, prompt: str, size: tuple[int, int]) -> Condition:
        (words,), _ = self.pipe.encode_prompt(
            prompt, device=self.device, do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        padded = torch.zeros(1, TOKENS, words.shape[-1], device=self.device, dtype=words.dtype)
        padded[0, : len(words)] = words
        return {"text": padded, "length": torch.tensor([len(words)])}

    def network(self, z: torch.Tensor, timestep: float, condition: Condition) -> torch.Tensor:
        pictures = list(z.unsqueeze(2).unbind(0))  # c 1 h w each
        words = [text[:length] for text, length in zip(condition["text"], condition["length"], strict=True)]
        output = self.transformer(
            pictures, self.times(1 - timestep / 1000, len(z)), words, return_dict=False
        )[0]
        return -torch.stack([velocity.float() for velocity in output]).squeeze(2)
