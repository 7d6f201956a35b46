"""The Stable Diffusion family: any diffusers folder in the SD 1.x or 2.x layout, and the bundled model."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bld.errors import InvalidInput, ModelUnavailable
from bld.models.base import Level, Trajectory
from bld.models.load import fingerprint
from bld.models.trajectory import ddim, start
from bld.options import EditOptions

PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


class UNetModel:
    """A LatentModel made of AutoencoderKL, UNet2DConditionModel and CLIP's text encoder.

    Whatever scheduler the folder names, steps are DDIM's, as in the paper; its betas, spacing and
    prediction type are the folder's.
    """

    def __init__(self, folder: Path, *, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Load the parts. Raises ModelUnavailable for a folder without the layout or with a part missing."""
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        index = check_layout(folder)

        def network(kind: Any, part: str, **options: Any) -> Any:
            with _loading(folder, part):
                module, found = kind.from_pretrained(
                    folder / part, use_safetensors=True, output_loading_info=True, **options
                )
                made_up = [*found["missing_keys"], *found["mismatched_keys"]]
                if made_up:  # both libraries would go on with random numbers
                    raise ValueError(f"its weights lack {len(made_up)} tensors, such as {made_up[0]}")
                return module.to(device).eval().requires_grad_(False)

        self.vae = network(AutoencoderKL, "vae", torch_dtype=dtype)
        self.unet = network(UNet2DConditionModel, "unet", torch_dtype=dtype)
        self.text_encoder = network(CLIPTextModel, "text_encoder", dtype=dtype)
        with _loading(folder, "scheduler"):
            self.scheduler_config = DDIMScheduler.load_config(folder / "scheduler")
        with _loading(folder, "tokenizer"):
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
            if self.tokenizer.model_max_length > self.text_encoder.config.max_position_embeddings:
                raise ValueError("it does not say how long a prompt may be (tokenizer_config.json)")
        if self.unet.config.in_channels != self.vae.config.latent_channels:
            raise ModelUnavailable(
                f"{folder}: its UNet takes {self.unet.config.in_channels} channels, not the latent's "
                f"{self.vae.config.latent_channels} (an inpainting model?); use a text-to-image model"
            )
        self.device, self.dtype = device, dtype
        self.name, self.revision = name, fingerprint(folder, PARTS)
        self.latent_factor = factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.native_size = int(self.unet.config.sample_size) * factor
        self.multiple = factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.guidance_scale = float(index.get("_bld_guidance_scale", 7.5))

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """E(x), the posterior's mean: b 3 h w in [-1, 1] to b 4 h/8 w/8."""
        z = self.vae.encode(image.to(self.device, self.dtype)).latent_dist.mode()
        scaled: torch.Tensor = z.float() * self.vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """D(z): b 4 h w to b 3 8h 8w, about [-1, 1]."""
        z = (z / self.vae.config.scaling_factor).to(self.device, self.dtype)
        image: torch.Tensor = self.vae.decode(z).sample
        return image.float()

    def decoder(self) -> torch.nn.Module:
        """A copy of D in float32, on the model's device, with its weights free to be tuned."""
        parts = [copy.deepcopy(part).float() for part in (self.vae.post_quant_conv, self.vae.decoder)]
        return Decoder(parts, self.vae.config.scaling_factor).requires_grad_(True)

    def excess(self, prompt: str) -> str:
        """The words past the tokenizer's limit, as the tokenizer writes them back; "" if none."""
        ids = self.tokenizer(prompt, verbose=False)["input_ids"]
        limit = self.tokenizer.model_max_length
        return str(self.tokenizer.decode(ids[limit - 1 : -1])) if len(ids) > limit else ""

    @torch.no_grad()
    def embed(self, prompt: str) -> torch.Tensor:
        """The prompt for cross-attention: 1 tokens width. What `excess` returns is not read."""
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        embedding: torch.Tensor = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        return embedding

    def trajectory(self, prompt: str, options: EditOptions) -> Trajectory:
        """DDIM steps with classifier-free guidance; no second pass where the scale is 1."""
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(self.scheduler_config)
        limit = scheduler.config.num_train_timesteps
        if options.steps > limit:
            raise InvalidInput(f"--steps {options.steps}: {self.name} knows {limit} noise levels")
        scheduler.set_timesteps(options.steps)
        # Two slips of diffusers: "trailing" may add a timestep -1 (at 61), "leading" may begin at `limit`.
        known = [min(t, limit - 1) for t in scheduler.timesteps.tolist()[: options.steps]]
        timesteps = known[start(options.steps, options.strength) :]
        signal = scheduler.alphas_cumprod.double()
        levels = [Level(float(signal[t].sqrt()), float((1 - signal[t]).sqrt())) for t in timesteps]
        predict = self._guided(prompt, options)
        return ddim(levels, timesteps, predict, scheduler.config.prediction_type)

    def _guided(self, prompt: str, options: EditOptions) -> Any:
        """The network's output under guidance (Ho and Salimans 2022), as a function of (z, t)."""
        scale = options.guidance_scale
        if scale is None:
            raise ValueError("options must be resolved")
        d = self.embed(prompt)
        null = self.embed(options.negative_prompt)

        @torch.no_grad()
        def unet(z: torch.Tensor, t: int, *texts: torch.Tensor) -> list[torch.Tensor]:
            n = len(z)
            z = z.to(self.device, self.dtype).repeat(len(texts), 1, 1, 1)
            text = torch.cat([x.expand(n, -1, -1) for x in texts])
            output = self.unet(z, t, encoder_hidden_states=text, return_dict=False)[0]
            return list(output.float().chunk(len(texts)))

        def predict(z: torch.Tensor, t: int) -> torch.Tensor:
            if scale == 1:
                return unet(z, t, d)[0]
            unguided, guided = unet(z, t, null, d)
            return unguided + scale * (guided - unguided)

        return predict


class Decoder(torch.nn.Sequential):
    """D with weights of its own: latents b c h w to images b 3 8h 8w, about [-1, 1]."""

    def __init__(self, parts: list[torch.nn.Module], scaling_factor: float) -> None:
        super().__init__(*parts)
        self.scaling_factor = scaling_factor

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """D(z), with a gradient."""
        z = z.to(next(self.parameters()).device) / self.scaling_factor
        for part in self:
            z = part(z)
        return z


@contextmanager
def _loading(folder: Path, part: str) -> Iterator[None]:
    """Name the part that cannot be loaded, in one line."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError, JSONDecodeError, ...
        reason = str(error).partition("\n")[0].strip() or type(error).__name__
        raise ModelUnavailable(f"{folder}: cannot load its {part}: {reason}") from error


def check_layout(folder: Path) -> dict[str, Any]:
    """The folder's model_index.json, after a look that every part is there and of this family."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelUnavailable(f"{folder}: no model_index.json, so not a diffusers model folder")
    try:
        index: dict[str, Any] = json.loads(index_file.read_text(encoding="utf-8"))
        found = [index[part][1] for part in ("vae", "unet", "text_encoder")]
    except (ValueError, LookupError, TypeError) as error:
        raise ModelUnavailable(f"{folder}: its model_index.json does not name its parts") from error
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ModelUnavailable(
            f"{folder}: its {' and '.join(missing)} is missing; a model folder has {', '.join(PARTS)}"
        )
    if found != ["AutoencoderKL", "UNet2DConditionModel", "CLIPTextModel"]:
        raise ModelUnavailable(
            f"{folder}: made of {', '.join(found)}; only Stable Diffusion 1.x and 2.x folders load so far"
        )
    return index
