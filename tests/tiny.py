"""Small stand-ins that are real: a Stable Diffusion folder of random weights, and a model whose
denoiser is exact, for tests that need to know the right answer."""

import json
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from bld.models.base import CLEAN, Level, Prompts, Step, Trajectory
from bld.models.trajectory import deterministic, multistep, start
from bld.options import EditOptions

TINY_GUIDANCE, TINY_STEPS = 3.0, 20
TINY_SIZE = 64  # px, as in the recipe "tiny"
CAPTIONS = ("a red apple", "a guitar on a table", "a photo of a cat", "an empty scene")

# Stable Diffusion 1's own scheduler file, as its folder has it. Two things differ from the bundled
# model's on purpose: another scheduler's name, and a last level that is not quite clean.
SD1_SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


# --- a Stable Diffusion folder ---


def tiny_folder(path: Path, *, scheduler: dict[str, Any] | None = None) -> Path:
    """Write a Stable Diffusion folder of seeded random weights to `path` and return it.

    It goes the way of the bundled model: the parts of the recipe "tiny", untrained, through
    `export`. scheduler: what its scheduler_config.json says, if not the bundled model's.
    """
    from diffusers import DDIMScheduler

    from bld.training import autoencoder, text_encoder, text_to_image, tokenizer
    from bld.training.export import export
    from bld.training.recipes import RECIPES, SCHEDULER

    recipe, parts = RECIPES["tiny"], path.with_name(f"{path.name}-parts")
    text = recipe.text_encoder
    words = tokenizer.train(list(CAPTIONS), text.vocabulary, text.tokens, parts / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules: dict[str, nn.Module] = {
            "autoencoder": autoencoder.build(recipe.autoencoder, recipe.size),
            "unet": text_to_image.build_unet(recipe.text_to_image, recipe.size, text.width),
            "text_encoder": text_encoder.build(text, words),
        }
        for name, module in modules.items():
            module.save_pretrained(parts / name)  # type: ignore[operator]
    DDIMScheduler(**SCHEDULER).save_pretrained(parts / "scheduler")
    if scheduler is not None:
        file = parts / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps(scheduler), encoding="utf-8")
    export(parts, path, guidance_scale=TINY_GUIDANCE, steps=TINY_STEPS)
    shutil.rmtree(parts)
    return path


def tiny_clip(path: Path, **config: Any) -> Path:
    """Write a CLIPModel folder of seeded random weights to `path`, with its tokenizer and processor.

    config: what both of its transformers are told beside their sizes.
    """
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from bld.training import tokenizer

    words = tokenizer.train(list(CAPTIONS), 640, 24, path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= config
    text = {
        **sizes, "vocab_size": len(words), "max_position_embeddings": 24, "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        path
    )
    return path


def tiny_siglip(path: Path) -> Path:
    """Write a SiglipModel folder as SigLIP 2 has it: Gemma's tokenizer, which keeps capitals."""
    from transformers import GemmaTokenizer, SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    letters = [chr(code) for start in "aA" for code in range(ord(start), ord(start) + 26)]
    words = GemmaTokenizer(
        vocab={symbol: i for i, symbol in enumerate([*symbols, *letters])}, merges=[], padding_side="right"
    )
    words.save_pretrained(path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 24, "projection_size": 32}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(path)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


# --- a model that is exact ---


def clean_given(z: torch.Tensor, level: Level, mean: torch.Tensor, spread: float) -> torch.Tensor:
    """E[z_0 | z] where z_0 ~ N(mean, spread^2) and z = signal * z_0 + sigma * eps."""
    signal, sigma = level
    gain = spread**2 * signal / (spread**2 * signal**2 + sigma**2)
    return mean + gain * (z - signal * mean)


def variance_preserving_levels(steps: int) -> list[Level]:
    """DDIM-like levels, evenly spaced in angle from no signal at all to nearly clean."""
    angles = [math.pi / 2 * (1 - i / steps) for i in range(steps)]
    return [Level(0.0, 1.0), *(Level(math.cos(a), math.sin(a)) for a in angles[1:])]


def flow_levels(steps: int) -> list[Level]:
    """Flow-matching levels: signal and sigma add up to one."""
    return [Level(i / steps, 1 - i / steps) for i in range(steps)]


def ddim_steps(levels: Sequence[Level], mean: torch.Tensor, spread: float) -> list[Step]:
    """The package's own DDIM over an exact prediction of v."""

    def predict(z: torch.Tensor, t: float) -> torch.Tensor:
        t = int(t)
        z_0 = clean_given(z, levels[t], mean, spread)
        eps = (z - levels[t].signal * z_0) / levels[t].sigma
        return levels[t].signal * eps - levels[t].sigma * z_0

    return deterministic(levels, range(len(levels)), predict, "v_prediction")


def multistep_steps(
    levels: Sequence[Level], mean: torch.Tensor, spread: float, correct: bool = False
) -> list[Step]:
    """The package's own DPM-Solver++(2M) or UniPC over an exact guess of z_0, on either kind of levels."""

    def predict(z: torch.Tensor, t: float) -> torch.Tensor:
        return clean_given(z, levels[int(t)], mean, spread)

    return multistep(levels, range(len(levels)), predict, "sample", correct)


def flow_steps(levels: Sequence[Level], mean: torch.Tensor, spread: float) -> list[Step]:
    """Euler steps along the exact velocity d z / d sigma = E[eps - z_0 | z]."""

    def step(level_in: Level, level_out: Level) -> Step:
        def denoise(z: torch.Tensor) -> torch.Tensor:
            z_0 = clean_given(z, level_in, mean, spread)
            eps = (z - level_in.signal * z_0) / level_in.sigma
            return z + (level_out.sigma - level_in.sigma) * (eps - z_0)

        return Step(level_in, level_out, denoise)

    return [step(*pair) for pair in zip(levels, [*levels[1:], CLEAN], strict=True)]


Family = Literal["ddim", "flow", "dpm++", "flow dpm++", "unipc", "flow unipc"]
Maker = Callable[[Sequence[Level], torch.Tensor, float], list[Step]]
FAMILIES: dict[Family, tuple[Callable[[int], list[Level]], Maker]] = {
    "ddim": (variance_preserving_levels, ddim_steps),
    "flow": (flow_levels, flow_steps),
    "dpm++": (variance_preserving_levels, multistep_steps),
    "flow dpm++": (flow_levels, multistep_steps),
    "unipc": (variance_preserving_levels, partial(multistep_steps, correct=True)),
    "flow unipc": (flow_levels, partial(multistep_steps, correct=True)),
}

COLOURS = {
    "red": (1.0, -1.0, -1.0),
    "green": (-1.0, 1.0, -1.0),
    "blue": (-1.0, -1.0, 1.0),
    "white": (1.0, 1.0, 1.0),
}


def painter(cell: int) -> nn.Sequential:
    """A decoder of three channels that paints each latent cell in it, with weights that can be tuned."""
    layer = nn.ConvTranspose2d(3, 3, cell, stride=cell)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3)[..., None, None].expand(3, 3, cell, cell))
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer)


class GaussianModel:
    """A LatentModel that is right by construction: its pictures are noise around the prompt's colour.

    A latent cell is the mean of 8 by 8 pixels, and decoding paints the cell in it. Every operation
    is elementwise, so results are the same to the bit however candidates are batched.
    """

    name = "gaussian"
    revision = "exact"
    native_size = TINY_SIZE
    latent_factor = 8
    multiple = 8
    max_aspect = 4
    whole = True
    guidance_scale = 1.0
    steps = 50
    spread = 0.05
    longest_prompt = 6  # words

    def __init__(self, family: Family = "ddim") -> None:
        self.family = family
        self.calls = 0  # of the denoiser and of the autoencoder

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return F.avg_pool2d(image, self.latent_factor)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return F.interpolate(z, scale_factor=self.latent_factor, mode="nearest")

    def decoder(self) -> nn.Sequential:
        return painter(self.latent_factor)

    def excess(self, prompt: str) -> str:
        return " ".join(prompt.split()[self.longest_prompt :])

    def guides(self, options: EditOptions) -> bool:
        return False

    def trajectory(self, prompt: Prompts, options: EditOptions, grid: tuple[int, int]) -> Trajectory:
        prompts = (prompt,) if isinstance(prompt, str) else prompt
        named = [[COLOURS[word] for word in one.split() if word in COLOURS] for one in prompts]
        mean = torch.tensor([found[0] if found else (0.0, 0.0, 0.0) for found in named]).view(-1, 3, 1, 1)
        levels, make = FAMILIES[self.family]
        skipped = start(options.steps, options.strength)
        return [self._counted(s) for s in make(levels(options.steps)[skipped:], mean, self.spread)]

    def _counted(self, step: Step) -> Step:
        def denoise(z: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return step.denoise(z)

        return replace(step, denoise=denoise)


class GatedModel(GaussianModel):
    """A GaussianModel that waits before each denoising step until it is let through: `let(3)`."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        self._gate = threading.Semaphore(0)

    def let(self, steps: int = 10**6) -> None:
        self._gate.release(steps)

    def hold(self) -> None:
        """From now on nothing gets through."""
        self._gate = threading.Semaphore(0)

    def _counted(self, step: Step) -> Step:
        counted = super()._counted(step)

        def denoise(z: torch.Tensor) -> torch.Tensor:
            self.begun += 1
            assert self._gate.acquire(timeout=60)
            return counted.denoise(z)

        return replace(step, denoise=denoise)
