"""The recipes of the bundled models: every size, rate and length of training, in one place."""

from dataclasses import dataclass
from typing import Any, Literal

from bld.training.limits import NO_LIMITS, Limits


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """An f8 AutoencoderKL with 4 latent channels, trained on crops of composites."""

    channels: tuple[int, ...]
    groups: int
    samples: int  # crops seen in all
    batch: int = 16
    crop: int = 64  # px
    learning_rate: float = 8e-4


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A CLIP text encoder that learns what the things in its prompts look like."""

    samples: int  # captions read
    width: int = 256
    layers: int = 3
    tokens: int = 48  # of them the last 36 hold the patches of a picture
    vocabulary: int = 1536
    batch: int = 64
    learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class TextToImage:
    """A UNet with cross-attention to the finished text encoder, trained on latents of composites."""

    channels: tuple[int, ...]
    groups: int
    samples: int  # latents seen in all, each with fresh noise
    layers: int | tuple[int, ...] = (3, 1, 1)  # blocks of each level on the way down; one more on the way up
    batch: int = 16
    bank: int = 12_288  # latents kept; each serves `reuse` times before it is replaced
    reuse: int = 12
    learning_rate: float = 5e-4
    compiled: bool = True  # torch.compile: minutes at the start, a third faster from then on


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A small residual classifier of object crops, for evaluation only."""

    samples: int
    side: int = 64  # px
    batch: int = 64
    kept: int = 12_288  # pictures at a time
    reuse: int = 4  # times that each is shown, each time in other colours and softness
    learning_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """A CLIPModel trained to tell which name's caption fits a picture."""

    samples: int
    side: int = 64  # px
    patch: int = 8
    width: int = 128  # of both towers and of the space they share
    vision_layers: int = 4
    text_layers: int = 2
    batch: int = 64
    rivals: int = 512  # names, at most, that each batch is told from beside its own
    bank: int = 8_192  # pictures kept; each serves `reuse` times before it is replaced
    reuse: int = 8
    learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """An unconditional diffusion model of pixels, for Blended Diffusion and its sibling."""

    samples: int
    side: int = 64  # px
    channels: int = 64
    multiples: tuple[int, ...] = (1, 2)
    patch: int = 4
    groups: int = 8
    batch: int = 8
    kept: int = 4096  # pictures at a time
    reuse: int = 6  # times that each is shown, with fresh noise
    learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Vqgan:
    """An autoencoder with a codebook, for PaintByWord++; begins with the run's autoencoder."""

    samples: int
    entries: int = 4096
    batch: int = 16
    crop: int = 64  # px
    learning_rate: float = 4e-4


@dataclass(frozen=True, kw_only=True)
class Glide:
    """A pair as GLIDE's: a base that reads a text and begins with the run's model of pixels, and what doubles
    its side, which learns from a third as many samples.
    """

    samples: int
    upsampler_multiples: tuple[int, ...] = (1, 2)
    upsampler_patch: int = 8
    text_width: int = 128
    text_layers: int = 2
    tokens: int = 16
    vocabulary: int = 1024
    naming: int = 300  # batches of captions that the text transformer reads before the first picture
    batch: int = 8
    kept: int = 4096
    reuse: int = 6
    learning_rate: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that `bld train` needs to make one bundled model."""

    size: int  # px, the side of the model's pictures
    names: Literal["core", "all"] = "core"  # those of vocabulary.toml, or of every cut-out
    flat: bool = False  # whether "a flat drawing of" something is taught, from the second set of cut-outs
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    text_to_image: TextToImage
    ranker: Ranker
    judge: Judge
    pixels: Pixels
    vqgan: Vqgan
    glide: Glide
    backgrounds: int = 6_000  # crops in the background pool
    exams: tuple[int, int] = (64, 100)  # edits of names and of colours that `bld train sheet` makes
    guidance_scale: float = 3.0  # what an edit with this model uses if nothing is said
    steps: int = 20  # likewise
    seed: int = 0
    limits: Limits = NO_LIMITS


RECIPES: dict[str, Recipe] = {
    # Two CPU cores, about four hours.
    "cpu": Recipe(
        size=128,
        autoencoder=Autoencoder(channels=(16, 32, 64, 128), groups=8, samples=50_000),
        text_encoder=TextEncoder(samples=120_000),
        text_to_image=TextToImage(channels=(64, 128, 256), groups=16, samples=500_000),
        ranker=Ranker(samples=150_000),
        judge=Judge(samples=60_000),
        # Those of the baselines: half an hour of one core each.
        pixels=Pixels(samples=100_000),
        vqgan=Vqgan(samples=16_000),
        glide=Glide(samples=80_000),
    ),
    # One GPU. The bundled weights got as much of it as a quarter of an hour allows (docs/training.md).
    "gpu": Recipe(
        size=256,
        names="all",
        flat=True,
        autoencoder=Autoencoder(
            channels=(16, 32, 64, 128), groups=8, samples=300_000, batch=128, crop=128, learning_rate=6e-4
        ),
        text_encoder=TextEncoder(samples=2_000_000, layers=6, vocabulary=2560, batch=512),
        text_to_image=TextToImage(
            channels=(96, 192, 288),
            groups=32,
            samples=2_000_000,
            layers=(2, 1, 1),
            batch=128,
            bank=65_536,
            reuse=8,
            learning_rate=7e-4,
        ),
        ranker=Ranker(
            samples=300_000, side=128, patch=16, width=160, vision_layers=5, batch=128, bank=16_384
        ),
        judge=Judge(samples=300_000, side=96, batch=512),
        pixels=Pixels(samples=500_000, batch=256),
        vqgan=Vqgan(samples=60_000, batch=64, crop=128),
        glide=Glide(samples=500_000, tokens=24, vocabulary=2048, naming=1000, batch=256),
        backgrounds=4_000,
        steps=10,
    ),
    # A few seconds: the whole path with real parts, for tests and for rehearsing a long run.
    "tiny": Recipe(
        size=64,
        flat=True,
        autoencoder=Autoencoder(channels=(8, 8, 16, 16), groups=4, samples=64, crop=32, batch=8),
        text_encoder=TextEncoder(samples=64, width=32, layers=2, vocabulary=640, batch=16),
        text_to_image=TextToImage(
            channels=(32, 32, 64), groups=8, samples=64, layers=1, batch=8, bank=64, compiled=False
        ),
        ranker=Ranker(samples=64, batch=16, width=32, vision_layers=1, text_layers=1),
        judge=Judge(samples=64, batch=16, kept=256),
        pixels=Pixels(samples=32, channels=8, multiples=(1, 2), groups=4, batch=8, kept=256),
        vqgan=Vqgan(samples=32, entries=32, batch=8, crop=32),
        glide=Glide(
            samples=32,
            upsampler_multiples=(1, 2),
            text_width=16,
            text_layers=1,
            vocabulary=640,
            naming=4,
            batch=8,
            kept=256,
        ),
        backgrounds=32,
        exams=(4, 4),
    ),
}

SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
