"""`bld train`: one command per part, each resumable, and all of them in order."""

import logging
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from bld.baselines.entrants import BUNDLED as BASELINES
from bld.baselines.glide import UPSAMPLER
from bld.errors import InvalidInput
from bld.models.load import BUNDLED, find, pick_device
from bld.training import autoencoder, glide, judge, pixels, ranker, text_encoder, text_to_image, vqgan
from bld.training.composites import Compositor, background_pool
from bld.training.data import (
    FLUENT,
    NOTO,
    everything,
    load_photographs,
    load_scenery,
    load_sprites,
)
from bld.training.export import export, export_baselines
from bld.training.limits import Limits
from bld.training.loop import OutOfTime, alone, join_group, leave_group, once
from bld.training.recipes import RECIPES, Recipe
from bld.training.vocabulary import Name, vocabulary

log = logging.getLogger(__name__)
Part = Literal[
    "autoencoder", "text-encoder", "text-to-image", "ranker", "judge", "export", "sheet", "all",
    "pixels", "vqgan", "glide", "export-baselines",
]  # fmt: skip
ALL: tuple[Part, ...] = (
    "autoencoder", "text-encoder", "text-to-image", "ranker", "judge", "export", "sheet"
)  # fmt: skip
CONTINUED: tuple[Part, ...] = ("autoencoder", "text-encoder", "text-to-image", "ranker", "judge")
MADE = {  # what each part writes last
    "autoencoder": "autoencoder",
    "text-encoder": "text_encoder",
    "text-to-image": "unet",
    "ranker": "ranker",
    "judge": "judge",
    "pixels": "pixels",
    "vqgan": "vqgan",
    "glide": f"glide/{UPSAMPLER}",
}
LENGTHS = {  # where the recipe says how long a part trains
    "autoencoder": ("autoencoder", "samples"),
    "text-encoder": ("text_encoder", "samples"),
    "text-to-image": ("text_to_image", "samples"),
    "ranker": ("ranker", "samples"),
    "judge": ("judge", "samples"),
    "pixels": ("pixels", "samples"),
    "vqgan": ("vqgan", "samples"),
    "glide": ("glide", "samples"),
}


@dataclass(frozen=True)
class Training:
    """One run of a recipe: data in, a folder of checkpoints and parts out."""

    recipe: Recipe
    data: Path
    folder: Path
    start_from: Path | None  # a model folder; None: train from nothing
    device: torch.device

    @cached_property
    def names(self) -> tuple[Name, ...]:
        return everything(self.data) if self.recipe.names == "all" else vocabulary()

    @property
    def styles(self) -> tuple[str, ...]:
        """The tars of the cut-outs that the generator learns."""
        return (FLUENT, NOTO) if self.recipe.flat else (FLUENT,)

    def compositor(self, seed: int, *, tars: tuple[str, ...] | None = None) -> Compositor:
        """A source of composites; another seed has other background crops."""
        r = self.recipe
        with torch.device("cpu"):
            scenes = load_scenery(self.data, held_out=False, short_side=max(512, 4 * r.size))
            photographs = load_photographs(self.data, held_out=False, every=2, side=max(192, r.size))
            pool = background_pool(scenes, photographs, r.backgrounds, r.size, r.seed + seed)
            sprites = load_sprites(self.data, self.names, tars or self.styles, side=max(160, r.size))
        return Compositor(sprites, pool)

    def autoencoder(self) -> None:
        begin = self.start_from / "vae" if self.start_from else None
        autoencoder.train(self.recipe, self.compositor(0), self.folder, begin)

    def vae(self) -> Any:
        """The autoencoder as the UNet learns on it."""
        from diffusers import AutoencoderKL

        self.need("autoencoder")
        vae: Any = AutoencoderKL.from_pretrained(self.folder / "autoencoder")
        vae = vae.to(torch.get_default_device(), memory_format=torch.channels_last)
        return vae.eval().requires_grad_(False)

    def text_encoder(self) -> None:
        if self.start_from:
            self.begin_with(self.start_from, "vae")
        text_encoder.train(self.recipe, self.compositor(5), self.vae(), self.names, self.folder)

    def text_to_image(self) -> None:
        if self.start_from:
            text_to_image.check_sizes(self.recipe, self.start_from)
            self.begin_with_words(self.start_from)
        r, vae = self.recipe, self.vae()
        self.need("text-encoder")
        text_to_image.train(r, self.compositor(7), vae, self.names, self.folder, self.start_from)

    def begin_with(self, model: Path, *parts: str) -> None:
        """Take parts of a model. Raises InvalidInput if it lacks one, or if the run has others of its own."""
        for part in parts:
            mine = self.folder / ("autoencoder" if part == "vae" else part)
            if not (model / part).is_dir():
                raise InvalidInput(f"cannot start from {model}: it has no {part}")
            if mine.is_dir() and any(
                not (mine / file.name).is_file() or (mine / file.name).read_bytes() != file.read_bytes()
                for file in (model / part).iterdir()
            ):
                raise InvalidInput(
                    f"{self.folder} has another {mine.name} than {model}: start in another folder"
                )
        for part in parts:
            mine = self.folder / ("autoencoder" if part == "vae" else part)
            once(mine, partial(shutil.copytree, model / part, dirs_exist_ok=True))

    def begin_with_words(self, model: Path) -> None:
        """Take the autoencoder of a model, and what reads its prompts unless the run has its own."""
        own = any((self.folder / part).is_dir() for part in ("tokenizer", "text_encoder"))
        self.begin_with(model, "vae", *(() if own else ("tokenizer", "text_encoder")))

    def need(self, part: str) -> None:
        """Raise InvalidInput unless `part` has been trained."""
        if not (self.folder / MADE[part]).is_dir():
            raise InvalidInput(f"{self.folder} has no {MADE[part]} yet: run bld train {part} first")

    def ranker(self) -> None:
        from transformers import CLIPTokenizer

        if self.start_from:
            self.begin_with_words(self.start_from)
        self.need("text-encoder")
        words = CLIPTokenizer.from_pretrained(self.folder / "tokenizer")
        begin = self.start_from / "ranker" if self.start_from else None
        ranker.train(self.recipe, self.compositor(11), self.vae(), words, self.names, self.folder, begin)

    def judge(self) -> None:
        begin = self.start_from / "judge" if self.start_from else None
        judge.train(self.recipe, self.compositor(13, tars=(FLUENT, NOTO)), self.names, self.folder, begin)

    def pixels(self) -> None:
        pixels.train(self.recipe, self.compositor(17), self.folder)

    def vqgan(self) -> None:
        vqgan.train(self.recipe, self.compositor(19), self.vae(), self.folder)

    def glide(self) -> None:
        self.need("pixels")
        glide.train(self.recipe, self.compositor(23), self.names, self.folder)

    def export(self) -> None:
        target = self.folder / "model"
        export(self.folder, target, guidance_scale=self.recipe.guidance_scale, steps=self.recipe.steps)
        log.info("model written to %s; the bundled one lies at %s", target, BUNDLED / "mini")

    def export_baselines(self) -> None:
        target = self.folder / "baselines"
        export_baselines(self.folder, target)
        log.info("baselines written to %s; the bundled ones lie at %s", target, BASELINES)

    def sheet(self) -> None:
        from bld.classify import load_classifier
        from bld.editor import Editor
        from bld.training import sheet

        model = self.start_from or self.folder / "model"
        if not (model / "judge").is_dir():
            raise InvalidInput(f"{model} is no model with a judge yet: run bld train judge and export first")
        critic = load_classifier("auto", str(model), device="cpu")
        editor, (names, colours) = Editor.from_pretrained(str(model)), self.recipe.exams
        sprites = load_sprites(self.data, self.names)
        coloured = [self.names[i] for i in sprites.name[~sprites.hue.isnan()]]
        examine = partial(sheet.examine, editor, critic, self.names, self.data, count=names, seed=0)
        for name, exam in (
            ("sheet", examine),
            ("paper", partial(examine, draw_mask=sheet.paper_mask, candidates=8)),
            ("colours", partial(sheet.colours, editor, coloured, self.data, count=colours, seed=1)),
        ):
            shares = sheet.write(exam(), self.folder, name)
            log.info("%s: %s", name, ", ".join(f"{k} {100 * v:.1f} %" for k, v in shares.items()))

    def run(self, part: Part) -> None:
        """Run a part, or all of them in order; parts that are done are skipped by "all"."""
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.set_flush_denormal(True)  # a setting of the whole process, so it is put back
        try:
            self._run(part)
        except OutOfTime as stopped:
            log.info("%s: out of time; the same command goes on from there", stopped)
        finally:
            torch.set_flush_denormal(False)
        leave_group()

    def _run(self, part: Part) -> None:
        first = join_group(self.device)
        for name in ALL if part == "all" else (part,):
            if name not in MADE and not first:
                continue
            if part == "all" and name in MADE and (self.folder / MADE[name]).is_dir():
                log.info("%s: already there", name)
                continue
            # Where a tensor of a training part is made without naming a device, it is made there. On a
            # CPU that is so anyway, and the context would slow every call down.
            elsewhere = name in MADE and self.device.type != "cpu"
            torch.backends.cudnn.benchmark = elsewhere  # every batch of a part has the same size
            lock = alone(self.folder, name) if name in MADE and first else nullcontext()
            with lock, self.device if elsewhere else nullcontext():
                getattr(self, name.replace("-", "_"))()


def start(
    part: Part,
    *,
    recipe: str,
    data: Path,
    folder: Path,
    samples: int | None,
    start_from: str | None = None,
    device: str = "cpu",
    minutes: float | None = None,
    within: float | None = None,
) -> None:
    """Run `part` of the named recipe. `samples` lengthens or shortens the part's training;
    `start_from` names the model whose autoencoder the text encoder learns by, whose weights the other
    parts of CONTINUED go on from, or which the sheets examine; `device` as in `bld edit`; after `minutes`
    whatever trains writes its checkpoint and stops; a part is done after `within` minutes, whatever it has
    seen by then.
    """
    if part not in get_args(Part):
        raise InvalidInput(f"bld train {part}: choose one of {', '.join(get_args(Part))}")
    if recipe not in RECIPES:
        raise InvalidInput(f"--recipe {recipe}: choose one of {', '.join(RECIPES)}")
    chosen = RECIPES[recipe]
    if samples is not None:
        if part not in LENGTHS:
            raise InvalidInput(f"--samples goes with a part that trains, not with {part}")
        group, length = LENGTHS[part]
        chosen = replace(chosen, **{group: replace(getattr(chosen, group), **{length: samples})})
    if within is not None and part not in LENGTHS:
        raise InvalidInput(f"--within goes with a part that trains, not with {part}")
    limits = Limits(
        deadline=math.inf if minutes is None else time.monotonic() + 60 * minutes,
        within=math.inf if within is None else 60 * within,
    )
    chosen = replace(chosen, limits=limits)
    if start_from is not None and part not in (*CONTINUED, "sheet"):
        raise InvalidInput(f"--start-from goes with {', '.join(CONTINUED)} and sheet, not with {part}")
    begin = find(start_from) if start_from else None
    Training(chosen, data, folder, begin, pick_device(device)).run(part)
