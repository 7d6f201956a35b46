"""The model's own exams: edits on scenes it never saw, contact sheets, and what came out of them.

The judge says whether the name is there (`examine`), the picture itself whether the colour is (`colours`).
Masks are such as one draws for an object (`drawn_mask`), or the paper's (`paper_mask`).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from bld.classify import Classifier, likeliest
from bld.editor import Editor, EditResult
from bld.masks import FloatArray, random_rectangle
from bld.options import EditOptions
from bld.training.colours import COLOURS, dominant, nearest
from bld.training.data import load_scenery
from bld.training.vocabulary import Name

COLUMNS, TILE = 8, 176
DrawMask = Callable[[int, np.random.Generator], np.ndarray]  # for a side in px: h w bool


@dataclass(frozen=True)
class Exam:
    """One edit of a sheet. answer: what is right; label: what the sheet says under the picture.

    tile: the candidate that the ranker puts first. verdicts: for each candidate in rank order, what was
    found there, likeliest first.
    """

    answer: str
    label: str
    tile: Image.Image
    verdicts: list[list[str]]


def held_out_crops(data: Path, count: int, side: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`count` square crops, evenly from the held-out scenes; h w 3 uint8 of random size >= side."""
    scenes = load_scenery(data, held_out=True)
    crops = []
    for i in range(count):
        scene = scenes[i % len(scenes)]
        length = int(rng.integers(2 * side, min(scene.shape[:2]) + 1))
        top, left = (int(rng.integers(n - length + 1)) for n in scene.shape[:2])
        crops.append(scene[top : top + length, left : left + length])
    return crops


def drawn_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """An ellipse or a rectangle somewhere inside, as one draws it for an object; h w bool.

    The long side is 45 to 65 % of the picture, the short one at least three quarters of it.
    """
    longer, ratio = size * rng.uniform(0.45, 0.65), rng.uniform(0.75, 1)
    height, width = (int(side) for side in rng.permutation([longer, ratio * longer]))
    top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
    y, x = np.mgrid[0:size, 0:size] + 0.5
    v, u = (y - top) / height * 2 - 1, (x - left) / width * 2 - 1
    if rng.random() < 0.5:
        return np.asarray(u**2 + v**2 <= 1)
    return np.asarray(np.maximum(abs(u), abs(v)) <= 1)


def paper_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """A rectangle of a fifth to half of each side (section 5.1 of the paper); h w bool."""
    mask = np.zeros((size, size), bool)
    mask[random_rectangle((size, size), rng).slices] = True
    return mask


def edits(
    editor: Editor,
    prompts: Sequence[str],
    data: Path,
    rng: np.random.Generator,
    seed: int,
    *,
    draw_mask: DrawMask = drawn_mask,
    candidates: int = EditOptions.candidates,
) -> Iterator[tuple[np.ndarray, EditResult]]:
    """The mask and what came of it, for each prompt, with the options that an edit has by default.

    The ranker picks among the candidates, as it does for a user; nothing else does.
    """
    crops = held_out_crops(data, len(prompts), editor.model.native_size, rng)
    for number, (prompt, crop) in enumerate(zip(prompts, crops, strict=True)):
        mask = draw_mask(len(crop), rng)
        yield mask, editor.edit(crop, mask, prompt, candidates=candidates, seed=1000 * seed + 10 * number)


def tile(result: EditResult) -> Image.Image:
    """The candidate that the ranker puts first, as the sheet shows it."""
    return Image.fromarray(result.best.photograph.pixels).resize((TILE, TILE), Image.Resampling.LANCZOS)


def examine(
    editor: Editor,
    judge: Classifier,
    names: tuple[Name, ...],
    data: Path,
    *,
    count: int,
    seed: int,
    draw_mask: DrawMask = drawn_mask,
    candidates: int = EditOptions.candidates,
) -> list[Exam]:
    """`count` edits with names drawn without repeats, each candidate named by the judge."""
    rng = np.random.default_rng(seed)
    chosen = [names[i] for i in rng.permutation(len(names))[:count]]
    exams = []
    prompts = [name.phrase() for name in chosen]
    made = edits(editor, prompts, data, rng, seed, draw_mask=draw_mask, candidates=candidates)
    for name, (mask, result) in zip(chosen, made, strict=True):
        verdicts = [verdict(judge, c.photograph.pixels, mask) for c in result.candidates]
        exams.append(Exam(name.name, name.name, tile(result), verdicts))
    return exams


def colours(editor: Editor, names: Sequence[Name], data: Path, *, count: int, seed: int) -> list[Exam]:
    """`count` edits with a colour and a name drawn at random; the verdict is the colour most of the mask has.

    names: those whose cut-outs have a colour that could be changed.
    """
    rng = np.random.default_rng(seed)
    asked = [(str(rng.choice(list(COLOURS))), names[int(rng.integers(len(names)))]) for _ in range(count)]
    prompts = [name.phrase(f"{colour} {name.name}") for colour, name in asked]
    exams = []
    made = zip(asked, prompts, edits(editor, prompts, data, rng, seed), strict=True)
    for (colour, _), prompt, (mask, result) in made:
        verdicts = [[colour_of(c.photograph.pixels, mask)] for c in result.candidates]
        exams.append(Exam(colour, prompt, tile(result), verdicts))
    return exams


def colour_of(picture: np.ndarray, mask: np.ndarray) -> str:
    """The colour word of the hue that most of the mask has. picture: h w 3 uint8; mask: h w bool."""
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    hue, _ = dominant(image, torch.from_numpy(mask.astype(np.float32))[None])
    return nearest(float(hue))


def verdict(judge: Classifier, picture: np.ndarray, mask: np.ndarray) -> list[str]:
    """The five likeliest names of what stands in a mask, h w bool, of a picture h w 3 uint8."""
    pixels: FloatArray = np.divide(picture, 255, dtype=np.float32)
    found = judge.probabilities(judge.view(pixels, mask.astype(np.float32)))
    return [judge.labels[i] for i in likeliest(found, 5)]


def write(exams: list[Exam], folder: Path, name: str = "sheet") -> dict[str, float]:
    """Write `NAME.png` and `NAME.json` into `folder`.

    Returns the shares of pictures whose answer is the first verdict (top_1) and among the five (top_5): of
    those ranked first, and of the whole batches.
    """
    rows, line = -(-len(exams) // COLUMNS), 14
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, exam in enumerate(exams):
        x, y = i % COLUMNS * TILE, i // COLUMNS * (TILE + line)
        sheet.paste(exam.tile, (x, y))
        best = exam.verdicts[0]
        place = best.index(exam.answer) + 1 if exam.answer in best else 0
        colour = "darkgreen" if place == 1 else "darkorange" if place else "firebrick"
        draw.text((x + 3, y + TILE), exam.label, fill=colour)
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"{name}.png")
    shares = {}
    for k in (1, 5):
        hits = [[exam.answer in found[:k] for found in exam.verdicts] for exam in exams]
        shares[f"top_{k}"] = float(np.mean([of_batch[0] for of_batch in hits]))
        shares[f"batch_top_{k}"] = float(np.mean([np.mean(of_batch) for of_batch in hits]))
    record = {"edits": len(exams), **shares, "verdicts": [[e.label, e.verdicts] for e in exams]}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return shares
