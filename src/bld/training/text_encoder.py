"""The text encoder of the bundled model, taught what things look like before the UNet learns to draw them.

A UNet that has to find out from noisy latents what every prompt stands for needs most of its training for
that. Here the text encoder learns it first, by plain regression and within minutes: each of the last tokens
of a prompt holds one patch of the thing named. What is left to the UNet, to put those patches where they
belong, is the same for every prompt, so all pictures teach it.
"""

import logging
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bld.training import tokenizer as tokenizers
from bld.training.captions import Captions, every_caption
from bld.training.colours import COLOURS
from bld.training.composites import Compositor
from bld.training.loop import Run, half_precision, once, seeded
from bld.training.recipes import Recipe, TextEncoder
from bld.training.vocabulary import Name, styles

log = logging.getLogger(__name__)
PATCHES = 6  # a side: the middle three quarters of a latent, where objects stand, are 6 x 6 patches


def build(recipe: TextEncoder, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder that fits the tokenizer.

    Words and places start far apart: with CLIP's own small embeddings the layers drown them within a few
    hundred steps, and the encoder says the same of every prompt from then on.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=4 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=4,
            max_position_embeddings=recipe.tokens,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(encoder.embeddings.token_embedding.weight, std=1.0)
    nn.init.normal_(encoder.embeddings.position_embedding.weight, std=1.0)
    return encoder


@torch.no_grad()
def appearances(
    vae: AutoencoderKL, compositor: Compositor, words: Captions
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the captions of each subject stand for: (subjects: n, patches: n PATCHES**2 d).

    A patch has the latent of the thing on grey, and how much of each of its cells the thing covers; the
    empty scene is grey. Subjects shown by several cut-outs get their mean. Over all, a value of a patch
    has mean 0, and all values together have deviation 1.
    """
    sprites = compositor.sprites
    own = torch.arange(len(sprites.name))
    changed = own[~sprites.hue.isnan()]
    which = torch.cat([own, changed.repeat_interleave(len(COLOURS))])
    colour = torch.cat([torch.full_like(own, -1), torch.arange(len(COLOURS)).repeat(len(changed))])
    subject = words.subject(sprites.name[which], colour, sprites.flat[which].long())
    side = compositor.size // 8
    seen = torch.zeros(len(words.weights), 5, side, side)  # latent, coverage
    for s, w, c in zip(*(torch.split(given, 32) for given in (subject, which, colour)), strict=True):
        rgb, alpha = compositor.specimens(w, c)
        z = vae.encode((0.5 * (1 - alpha) + rgb) * 2 - 1).latent_dist.mean
        seen.index_add_(0, s, torch.cat([z, 2 * F.avg_pool2d(alpha, 8)], 1))
    seen /= torch.bincount(subject, minlength=len(seen)).clamp(min=1).view(-1, 1, 1, 1)
    grey = torch.zeros(1, 3, compositor.size, compositor.size)
    seen[-1, :4] = vae.encode(grey).latent_dist.mean[0]  # the empty scene is the last subject
    known = torch.cat([torch.unique(subject), torch.tensor([len(seen) - 1])])
    margin = side // 8
    middle = seen[known, :, margin : side - margin, margin : side - margin]
    cells = middle.shape[-1] // PATCHES
    patches = F.unfold(middle, cells, stride=cells).transpose(1, 2)
    patches = patches - patches.mean(0, keepdim=True)
    return known, patches / patches.std()


def train(
    recipe: Recipe, compositor: Compositor, vae: AutoencoderKL, names: tuple[Name, ...], folder: Path
) -> None:
    """Train (or go on training) the text encoder; writes `folder/text_encoder` and `folder/tokenizer`."""
    torch.manual_seed(recipe.seed)
    generator = seeded(recipe.seed + 5)
    r, keywords, taught = recipe.text_encoder, compositor.sprites.keywords, styles(flat=recipe.flat)
    corpus = [text for form in every_caption(names, keywords, taught) for text, _ in form]
    once(folder / "tokenizer", partial(tokenizers.train, corpus, r.vocabulary, r.tokens))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    words = Captions(names, keywords, tokenizer, taught)
    subjects, patches = appearances(vae, compositor, words)
    encoder = build(r, tokenizer).to(torch.get_default_device())
    head = nn.Linear(r.width, patches.shape[-1]).to(torch.get_default_device())
    run = Run(
        folder, "text_encoder", {"text_encoder": encoder, "head": head}, generator, r.samples, r.batch,
        r.learning_rate, limits=recipe.limits,
    )  # fmt: skip

    def step() -> torch.Tensor:
        pick = torch.randint(len(subjects), (r.batch,), generator=generator)
        ids = words.ids[words.draw(subjects[pick], generator)]
        empty = ids[:, 1] == tokenizer.eos_token_id  # says nothing of what its picture shows
        target = patches[torch.where(empty, len(subjects) - 1, pick)]
        with half_precision():
            tokens = encoder(ids).last_hidden_state[:, -(PATCHES**2) :].float()
        error: torch.Tensor = (head(tokens).float() - target).square().mean()
        return error

    run.train(step)
    with torch.no_grad():
        run.averaged("text_encoder"), run.averaged("head")
        missed = torch.stack([step() for _ in range(16)]).mean()
    log.info("text encoder: %.1f %% of what things look like", 100 * (1 - float(missed)))
    run.write("text_encoder", encoder)
