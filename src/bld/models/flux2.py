"""FLUX.2 klein."""

from typing import Any

import torch

from bld.models.family import Condition
from bld.models.flow import FlowFamily

TOKENS = 512
SQUARE = 4300  # tokens from which on the shift no longer depends on the number of steps


class Flux2Klein(FlowFamily):
    """Qwen3 reads the prompt; latents are normalised by the autoencoder's own statistics, patch by patch.

    z are cells of 8 px as with FLUX.1, not the tokens of 16 px that they are packed into: masks are finer.
    """

    pipeline = "Flux2KleinPipeline"
    parts = {
        "vae": "AutoencoderKLFlux2",
        "transformer": "Flux2Transformer2DModel",
        "text_encoder": "Qwen3ForCausalLM",
        "tokenizer": "Qwen2TokenizerFast",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }
    tokenizer: Any
    text_encoder: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        distilled = bool(self.index.get("is_distilled", False))
        self.steps, self.guidance_scale = (4, 1.0) if distilled else (50, 4.0)

    def shift(self, tokens: int, steps: int) -> float:
        """mu as its authors fitted it: linear in the tokens, and between 10 and 200 steps in the steps."""
        many = 0.00016927 * tokens + 0.45666666
        if tokens > SQUARE:
            return many
        few = 8.73809524e-05 * tokens + 1.89833333
        return few + (many - few) * (steps - 10) / 190

    def unread(self, prompt: str) -> str:
        return beyond(self.tokenizer, prompt, TOKENS, thinking=False)

    def condition(self, prompt: str, size: tuple[int, int]) -> Condition:
        text, _ = self.pipe.encode_prompt(prompt, device=self.device, max_sequence_length=TOKENS)
        return {"text": text}

    def network(self, z: torch.Tensor, timestep: float, condition: Condition) -> torch.Tensor:
        patches = self.pipe._patchify_latents(z)
        n, _, height, width = patches.shape
        output = self.transformer(
            hidden_states=self.pipe._pack_latents(patches),
            timestep=self.times(timestep / 1000, n),
            guidance=None,
            encoder_hidden_states=condition["text"],
            txt_ids=self.pipe._prepare_text_ids(condition["text"]).to(self.device),
            img_ids=self.pipe._prepare_latent_ids(patches).to(self.device),
            return_dict=False,
        )[0]
        cells: torch.Tensor = self.pipe._unpatchify_latents(
            output.permute(0, 2, 1).reshape(n, -1, height, width)
        )
        return cells.float()

    def scaled(self, z: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._statistics(z)
        normal: torch.Tensor = self.pipe._unpatchify_latents(
            (self.pipe._patchify_latents(z) - mean) / deviation
        )
        return normal

    def unscaled(self, z: torch.Tensor) -> torch.Tensor:
        mean, deviation = self._statistics(z)
        raw: torch.Tensor = self.pipe._unpatchify_latents(self.pipe._patchify_latents(z) * deviation + mean)
        return raw

    def _statistics(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of each channel of a patch, 1 4c 1 1."""
        norm = self.vae.bn
        deviation = (norm.running_var + self.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean.view(1, -1, 1, 1).to(z), deviation.view(1, -1, 1, 1).to(z)


def beyond(tokenizer: Any, prompt: str, limit: int, *, thinking: bool) -> str:
    """What does not fit of a prompt when it is put to a chat model in `limit` tokens; "" if it all does."""

    def framed(content: str) -> int:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False, add_generation_prompt=True, enable_thinking=thinking,
        )  # fmt: skip
        return len(tokenizer(text)["input_ids"])

    room = limit - framed("")
    ids = tokenizer(prompt)["input_ids"]
    return str(tokenizer.decode(ids[room:])) if framed(prompt) > limit else ""
