"""CompVis/ldm-text2im-large-256, the paper's own model, and whatever has its layout."""

from pathlib import Path
from typing import Any

import torch

from bld.models.family import Condition, cut
from bld.models.unet import UNetFamily

TOKENS = 77  # whatever the tokenizer says of itself; the network was trained with so many


class LatentDiffusion(UNetFamily):
    """Latent diffusion with BERT's words: its own text transformer, an f8 autoencoder called vqvae."""

    pipeline = "LDMTextToImagePipeline"
    parts = {
        "vqvae": "AutoencoderKL",
        "unet": "UNet2DConditionModel",
        "bert": "LDMBertModel",
        "tokenizer": "BertTokenizer",
        "scheduler": "DDIMScheduler",
    }
    guidance_scale = 5.0  # the paper's
    bert: Any
    tokenizer: Any

    def __init__(self, folder: Path, **loading: Any) -> None:
        super().__init__(folder, **loading)
        self.tokens = min(TOKENS, self.bert.config.max_position_embeddings)

    def unread(self, prompt: str) -> str:
        return cut(self.tokenizer, prompt, self.tokens)

    def condition(self, prompt: str, size: tuple[int, int]) -> Condition:
        ids = self.tokenizer(
            prompt, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        ).input_ids
        text: torch.Tensor = self.bert(ids.to(self.device))[0]
        return {"text": text}
