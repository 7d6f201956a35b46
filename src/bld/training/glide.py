"""A small pair as GLIDE's: a base that draws what a text says into what is known, and its upsampler.

As the published pair was fine-tuned to, both see the picture with a random part erased, and the mask. The
base also learns without a text, for guidance, and with nothing known, which is how GLIDE-masked asks it.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPTokenizer

from bld.baselines.diffusion import cosine_alpha_bar, linear_alpha_bar
from bld.baselines.glide import BASE, TOKENIZER, UPSAMPLER, eight_bits
from bld.baselines.unet import Text, UNet
from bld.training import pixels
from bld.training import tokenizer as tokenizers
from bld.training.captions import Captions, every_caption
from bld.training.composites import Compositor
from bld.training.loop import Run, half_precision, once, seeded
from bld.training.pictures import PictureRing, Pictures
from bld.training.recipes import Recipe
from bld.training.vocabulary import Name, styles

log = logging.getLogger(__name__)
UNTOLD = 0.1  # of the pictures, whose caption the base does not see
UNKNOWN = 0.3  # of the pictures, of which nothing is known
ELSEWHERE = 0.2  # of the masks, that lie anywhere
READERS = ("transformer.", "final_ln.", "token_embedding.", "positional_embedding", "padding_embedding")


def build(recipe: Recipe, vocabulary: int, *, upsampler: bool) -> UNet:
    """An untrained network of the pair: of the base the layers of the model of pixels, and what reads."""
    r, like = recipe.glide, pixels.shape(recipe.pixels)
    text = Text(vocabulary=vocabulary, tokens=r.tokens, width=r.text_width, layers=r.text_layers, heads=4)
    if not upsampler:
        return UNet(replace(like, inputs=7, text=text))
    return UNet(
        replace(
            like, side=2 * like.side, multiples=r.upsampler_multiples, patch=r.upsampler_patch, inputs=10,
            text=text,
        )
    )  # fmt: skip


@torch.no_grad()
def begin_with(unet: UNet, model: UNet) -> None:
    """Put a model of pixels into a base: it sees x_t as before, and of what is new to it nothing yet."""
    weights = dict(model.state_dict())
    first = torch.zeros_like(unet.input_blocks[0][0].weight)  # type: ignore[index]
    found = weights.pop("input_blocks.0.0.weight")
    first[:, : found.shape[1]] = found
    unet.load_state_dict({**unet.state_dict(), **weights, "input_blocks.0.0.weight": first})


def known(pictures: Pictures, generator: torch.Generator) -> torch.Tensor:
    """What is known of each picture, b 1 s s, 1 = known: all but a box, nothing where it is all unknown."""
    batch, side = len(pictures.image), pictures.image.shape[-1]
    anywhere = torch.rand(batch, 2, generator=generator) * 0.5
    anywhere = torch.cat([anywhere, anywhere + 0.2 + 0.3 * torch.rand(batch, 2, generator=generator)], 1)
    elsewhere = torch.rand(batch, 1, generator=generator) < ELSEWHERE
    box = torch.where(elsewhere, anywhere, pictures.box)
    line = (torch.arange(side) + 0.5) / side
    rows = (line > box[:, 0, None]) & (line < box[:, 2, None])
    columns = (line > box[:, 1, None]) & (line < box[:, 3, None])
    nothing = torch.rand(batch, 1, 1, generator=generator) < UNKNOWN
    return (~(rows[:, :, None] & columns[:, None, :] | nothing)).float()[:, None]


def learn_names(
    unet: UNet, words: Captions, tokenizer: CLIPTokenizer, names: int, steps: int, generator: torch.Generator
) -> None:
    """Teach the text transformer, before any picture, to say in its last place which name is in a caption."""
    head = torch.nn.Linear(unet.transformer_proj.in_features, names)
    torch.nn.init.normal_(unet.token_embedding.weight, std=1.0)
    read = [p for n, p in unet.named_parameters() if n.startswith(READERS)]
    optimizer = torch.optim.AdamW([*read, *head.parameters()], lr=1e-3)
    for _ in range(steps):
        name = torch.randint(names, (64,), generator=generator)
        tokens, there = told(words, words.subject(name), tokenizer, 0.0, generator)
        loss = F.cross_entropy(head(unet.read(tokens, there)[:, -1]), name)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    log.info("glide: names told apart before the first picture, loss %.3f", float(loss.detach()))


def told(
    words: Captions,
    subject: torch.Tensor,
    tokenizer: CLIPTokenizer,
    untold: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A caption of each subject as tokens, and which of them are not padding; a share of them is empty."""
    ids = words.ids[words.draw(subject, generator)]
    empty = torch.rand(len(ids), 1, generator=generator) < untold
    ids = torch.where(empty & (torch.arange(ids.shape[1]) > 0), tokenizer.eos_token_id, ids)
    return ids, ids != tokenizer.eos_token_id


def train(recipe: Recipe, compositor: Compositor, names: tuple[Name, ...], folder: Path) -> None:
    """Train (or go on training) the pair; writes `folder/glide`."""
    torch.manual_seed(recipe.seed)
    generator, r = seeded(recipe.seed + 7), recipe.glide
    taught, keywords = styles(flat=recipe.flat), compositor.sprites.keywords
    corpus = [text for form in every_caption(names, keywords, taught) for text, _ in form]
    where = folder / "glide" / TOKENIZER
    once(where, partial(tokenizers.train, corpus, r.vocabulary, r.tokens))
    tokenizer = CLIPTokenizer.from_pretrained(where)
    words = Captions(names, keywords, tokenizer, taught)
    for part in (BASE, UPSAMPLER):
        if not (folder / "glide" / part).is_dir():
            _train(recipe, compositor, words, tokenizer, len(names), folder, part, generator)


def _train(
    recipe: Recipe,
    compositor: Compositor,
    words: Captions,
    tokenizer: CLIPTokenizer,
    names: int,
    folder: Path,
    part: str,
    generator: torch.Generator,
) -> None:
    """One network of the pair."""
    r, upsampler = recipe.glide, part == UPSAMPLER
    unet = build(recipe, len(tokenizer), upsampler=upsampler)
    unet = unet.to(torch.get_default_device()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not (folder / f"glide_{part}.pt").exists():
        if not upsampler:
            begin_with(unet, UNet.from_pretrained(folder / "pixels"))
        learn_names(unet, words, tokenizer, names, r.naming, generator)
    alpha_bar = linear_alpha_bar() if upsampler else cosine_alpha_bar()
    samples = r.samples // 3 if upsampler else r.samples
    run = Run(
        folder, f"glide_{part}", {part: unet}, generator, samples, r.batch, r.learning_rate,
        limits=recipe.limits,
    )  # fmt: skip
    ring = PictureRing(compositor, unet.shape.side, reuse=r.reuse, kept=r.kept, generator=generator)

    def step() -> torch.Tensor:
        pictures = ring.draw(r.batch)
        x, m = pictures.image, known(pictures, generator)
        subject = words.subject(pictures.name, pictures.colour, pictures.flat)
        tokens, there = told(words, subject, tokenizer, 0.0 if upsampler else UNTOLD, generator)
        t = torch.randint(len(alpha_bar), (r.batch,), generator=generator)
        eps, a = torch.randn(x.shape, generator=generator), alpha_bar[t].view(-1, 1, 1, 1)
        given = [a.sqrt() * x + (1 - a).sqrt() * eps, x * m, m]
        if upsampler:
            low = eight_bits(F.avg_pool2d(x, 2))
            given.append(F.interpolate(low, scale_factor=2.0, mode="bilinear"))
            x = x - given[-1]  # it says what to add to that
        with half_precision():
            text = unet.read(tokens, there)
            shown = torch.cat(given, 1).to(memory_format=torch.channels_last)
            found: torch.Tensor = unet(shown, t, text).float()
        return (found - x).square().mean()

    run.train(step)
    run.write(f"glide/{part}", run.averaged(part))
