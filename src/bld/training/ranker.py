"""The ranker: a small CLIPModel that says which of many candidates shows what the prompt names.

It is trained on what `bld.rank` shows it: the object on black, its box, and the whole picture, half of
them decoded from noisy latents, as an edit that did not come out well looks.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bld.classify import look
from bld.training.captions import Captions
from bld.training.colours import COLOURS
from bld.training.composites import Compositor
from bld.training.crops import object_boxes
from bld.training.loop import Run, begin_with, half_precision, seeded
from bld.training.recipes import Ranker, Recipe
from bld.training.vocabulary import FORMS, Name

log = logging.getLogger(__name__)
MEAN = STD = 0.5  # of the pixels, in each channel


def build(recipe: Ranker, tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP model that fits the tokenizer."""
    shared = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_attention_heads": recipe.width // 32,
    }
    text = {
        **shared,
        "num_hidden_layers": recipe.text_layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **shared,
        "num_hidden_layers": recipe.vision_layers,
        "image_size": recipe.side,
        "patch_size": recipe.patch,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.width))


def views(image: torch.Tensor, box: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """A third each: the object on black, its box, the whole picture; b 3 side side, [0,1].

    The mask on black is an ellipse or a rectangle, as a user draws it, not the object's outline.
    """
    everything = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(box), 4)
    kind = torch.randint(3, (len(box), 1), generator=generator)
    line = (torch.arange(image.shape[-1]) + 0.5) / image.shape[-1]
    v, u = (
        (2 * (line - box[:, i, None]) / (box[:, i + 2] - box[:, i])[:, None] - 1).abs() for i in (0, 1)
    )  # 1 at the edges of the box
    v, u = v[:, :, None], u[:, None, :]
    ellipse = (torch.rand(len(box), 1, 1, generator=generator) < 0.5).float()
    inside = ellipse * (u**2 + v**2) + (1 - ellipse) * torch.maximum(u, v) <= 1
    masked = image * torch.where(kind[..., None] == 0, inside, True)[:, None]
    return look(masked, torch.where(kind == 1, box, everything), side)


class PictureBank:
    """A ring of composites, half of them decoded from noisy latents, so that each serves several steps.

    image: n 3 s s uint8; box: n 4, of the object as a user would mask it; name and colour: n, as in
    `Composites`.
    """

    def __init__(self, vae: AutoencoderKL, compositor: Compositor, capacity: int) -> None:
        self.vae, self.compositor = vae, compositor
        self.image = torch.zeros(capacity, 3, compositor.size, compositor.size, dtype=torch.uint8)
        self.box = torch.zeros(capacity, 4)
        self.name = torch.zeros(capacity, dtype=torch.int64)
        self.colour = torch.zeros(capacity, dtype=torch.int64)
        self.drawn = 0

    def refill(self, count: int, generator: torch.Generator) -> None:
        """Draw `count` composites over the oldest ones."""
        fresh = self.compositor.draw(count, generator)
        half = count // 2
        image = torch.cat([decoded(self.vae, fresh.image[:half], generator), fresh.image[half:]])
        where = (self.drawn + torch.arange(count)) % len(self.image)
        self.image[where] = (image * 255).round().to(torch.uint8)
        self.box[where] = object_boxes(fresh, generator)
        self.name[where], self.colour[where] = fresh.name, fresh.colour
        self.drawn += count

    def draw(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Pictures in [0, 1], boxes, names and colours."""
        pick = torch.randint(min(self.drawn, len(self.image)), (batch,), generator=generator)
        return self.image[pick].float() / 255, self.box[pick], self.name[pick], self.colour[pick]


class Choices(NamedTuple):
    """Captions to choose from, by what they are of: name and colour, t each, as in `Composites`."""

    name: torch.Tensor
    colour: torch.Tensor

    def loss(self, logits: torch.Tensor, name: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of pictures, b, with the first caption that says exactly what they are.

        logits: b t. A caption that is right as well ("a guitar" of a blue guitar, "a blue guitar" of one in
        its own colour, which may be blue) neither counts for nor against.
        """
        same, exact = self.name == name[:, None], self.colour == colour[:, None]
        target = (same & exact).float().argmax(1)  # the first
        right = same & (exact | (self.colour < 0) | (colour < 0)[:, None])
        right[torch.arange(len(target)), target] = False
        return F.cross_entropy(logits.masked_fill(right, -torch.inf), target)


@torch.no_grad()
def decoded(vae: AutoencoderKL, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures b 3 s s, [0,1], from latents with up to as much noise as signal."""
    with half_precision():
        z = vae.encode(image * 2 - 1).latent_dist.mean
        amount = 0.7 * torch.rand(len(z), 1, 1, 1, generator=generator)
        noise = torch.randn(z.shape, generator=generator)
        picture: torch.Tensor = vae.decode((1 - amount**2).sqrt() * z + amount * noise).sample
    return (picture.float() / 2 + 0.5).clamp(0, 1)


def train(
    recipe: Recipe,
    compositor: Compositor,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    names: tuple[Name, ...],
    folder: Path,
    start_from: Path | None = None,
) -> None:
    """Train the ranker; writes `folder/ranker`. Its accuracy on fresh composites is logged.

    `start_from` is the folder of a ranker of the same recipe whose weights a fresh run begins with.
    """
    torch.manual_seed(recipe.seed)
    generator = seeded(recipe.seed + 4)
    r, clip = recipe.ranker, build(recipe.ranker, tokenizer).to(torch.get_default_device())
    clip.set_attn_implementation("eager")  # of 65 places; its backward pass takes a half less on a CPU
    if start_from and not (folder / "ranker.pt").exists():
        begin_with(clip, start_from)
    words = Captions(names, compositor.sprites.keywords, tokenizer, (FORMS,))
    every = torch.cat([torch.arange(len(names)), torch.tensor([-1])])  # each name, and the empty scene
    run = Run(
        folder, "ranker", {"ranker": clip}, generator, r.samples, r.batch, r.learning_rate,
        limits=recipe.limits,
    )  # fmt: skip

    bank = PictureBank(vae, compositor, r.bank)
    while bank.drawn < min(r.bank, 1024):
        bank.refill(r.batch, generator)

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        image, box, name, colour = bank.draw(r.batch, generator)
        gain = 0.8 + 0.4 * torch.rand(r.batch, 3, 1, 1, generator=generator)
        return (views(image, box, r.side, generator) * gain).clamp(0, 1), name, colour

    def similarities(image: torch.Tensor, choices: Choices) -> torch.Tensor:
        """Of each picture with one caption of each choice, b t."""
        ids = words.ids[words.draw(words.subject(choices.name, choices.colour), generator)]
        longest = int((ids != tokenizer.eos_token_id).sum(1).max()) + 1  # what follows the end is not read
        ids = ids[:, :longest]
        with half_precision():
            seen: Any = clip(input_ids=ids, pixel_values=(image - MEAN) / STD, return_dict=True)
        logits: torch.Tensor = seen.logits_per_image.float()
        return logits

    def step() -> torch.Tensor:
        if run.done // r.batch % r.reuse == 0:
            bank.refill(r.batch, generator)
        image, name, colour = batch()
        others = every[torch.randperm(len(every), generator=generator)[: r.rivals]]
        shown = torch.unique(torch.cat([name, others]))
        given = colour >= 0  # of those, the colour itself and another one
        shift = torch.randint(1, len(COLOURS), (int(given.sum()),), generator=generator)
        choices = Choices(
            torch.cat([shown, name[given], name[given]]),
            torch.cat([-torch.ones_like(shown), colour[given], (colour[given] + shift) % len(COLOURS)]),
        )
        return choices.loss(similarities(image, choices), name, colour)

    run.train(step)
    run.averaged("ranker")
    bank = PictureBank(vae, compositor, 1024)
    for _ in range(16):
        bank.refill(64, generator)
    plain, hits = Choices(every, -torch.ones_like(every)), []
    with torch.no_grad():
        for image, name, _ in (batch() for _ in range(16)):
            guess = every[similarities(image, plain).argmax(1)]
            hits.append((guess == name).float().mean())
    log.info("ranker: %.1f %% of fresh composites named right", 100 * float(torch.stack(hits).mean()))
    processor = CLIPImageProcessorPil(
        size={"height": r.side, "width": r.side},
        do_center_crop=False,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    run.write("ranker", clip, tokenizer, processor)
