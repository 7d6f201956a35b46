"""The model's own exam: edits on scenes it never saw, a contact sheet, and what the judge says of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import ResNetForImageClassification

from bld.editor import Editor
from bld.masks import mask_box
from bld.training.crops import look, squared
from bld.training.data import load_scenery
from bld.training.judge import classify
from bld.training.vocabulary import Name

COLUMNS, TILE = 8, 176


@dataclass(frozen=True)
class Exam:
    """One edit of the sheet. tile: the candidate that the ranker puts first.

    verdicts: for each candidate in rank order, the judge's five names, likeliest first.
    """

    name: str
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


def random_mask(size: int, rng: np.random.Generator) -> np.ndarray:
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


def examine(
    editor: Editor,
    judge: ResNetForImageClassification,
    names: tuple[Name, ...],
    data: Path,
    *,
    count: int,
    seed: int,
) -> list[Exam]:
    """`count` edits with names drawn without repeats and the options that an edit has by default.

    The ranker picks among the candidates, as it does for a user; nothing else does.
    """
    rng = np.random.default_rng(seed)
    chosen = [names[i] for i in rng.permutation(len(names))[:count]]
    crops = held_out_crops(data, len(chosen), editor.model.native_size, rng)
    exams = []
    for number, (name, crop) in enumerate(zip(chosen, crops, strict=True)):
        mask = random_mask(len(crop), rng)
        result = editor.edit(crop, mask, name.phrase(), seed=1000 * seed + 10 * number)
        box = mask_box(mask.astype(np.float32))
        edges = torch.tensor([[box.top, box.left, box.bottom, box.right]]) / len(crop)
        verdicts = [verdict(judge, c.photograph.pixels, edges) for c in result.candidates]
        best = Image.fromarray(result.best.photograph.pixels)
        exams.append(Exam(name.name, best.resize((TILE, TILE), Image.Resampling.LANCZOS), verdicts))
    return exams


@torch.no_grad()
def verdict(judge: ResNetForImageClassification, picture: np.ndarray, edges: torch.Tensor) -> list[str]:
    """The five likeliest names of what stands in the box `edges` (1 4) of a picture h w 3 uint8."""
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    order = classify(judge, look(image, squared(edges), 64))[0].argsort(descending=True)
    return [judge.config.id2label[int(i)] for i in order[:5]]


def write(exams: list[Exam], folder: Path) -> dict[str, float]:
    """Write `sheet.png` and `sheet.json` into `folder`.

    Returns the shares of pictures whose name is the judge's first guess (top_1) and among its five (top_5):
    of those ranked first, and of the whole batches.
    """
    rows, line = -(-len(exams) // COLUMNS), 14
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, exam in enumerate(exams):
        x, y = i % COLUMNS * TILE, i // COLUMNS * (TILE + line)
        sheet.paste(exam.tile, (x, y))
        best = exam.verdicts[0]
        place = best.index(exam.name) + 1 if exam.name in best else 0
        colour = "darkgreen" if place == 1 else "darkorange" if place else "firebrick"
        draw.text((x + 3, y + TILE), exam.name, fill=colour)
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / "sheet.png")
    shares = {}
    for k in (1, 5):
        hits = [[exam.name in names[:k] for names in exam.verdicts] for exam in exams]
        shares[f"top_{k}"] = float(np.mean([of_batch[0] for of_batch in hits]))
        shares[f"batch_top_{k}"] = float(np.mean([np.mean(of_batch) for of_batch in hits]))
    record = {"edits": len(exams), **shares, "verdicts": [[e.name, e.verdicts] for e in exams]}
    (folder / "sheet.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return shares
