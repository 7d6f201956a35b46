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
from bld.training.data import load_scenery
from bld.training.judge import classify, zoom
from bld.training.vocabulary import Name

COLUMNS, TILE = 8, 160


@dataclass(frozen=True)
class Exam:
    """One edit of the sheet: the picture, the tile shown, and the judge's names, likeliest first."""

    name: str
    tile: Image.Image
    verdict: list[str]


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
    """An ellipse or a rectangle, sides 40 to 70 % of the picture, somewhere inside; h w bool."""
    height, width = (int(size * rng.uniform(0.4, 0.7)) for _ in range(2))
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
    """`count` edits with names drawn without repeats; one candidate each, so nothing is picked."""
    rng = np.random.default_rng(seed)
    chosen = [names[i] for i in rng.permutation(len(names))[:count]]
    crops = held_out_crops(data, len(chosen), editor.model.native_size, rng)
    exams = []
    for number, (name, crop) in enumerate(zip(chosen, crops, strict=True)):
        mask = random_mask(len(crop), rng)
        result = editor.edit(crop, mask, name.phrase(), candidates=1, seed=seed + number)
        picture = result.best.photograph.pixels
        box = mask_box(mask.astype(np.float32))
        edges = torch.tensor([[box.top, box.left, box.bottom, box.right]]) / len(crop)
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            order = classify(judge, zoom(image, edges, 64))[0].argsort(descending=True)
        verdict = [judge.config.id2label[int(i)] for i in order[:5]]
        tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.LANCZOS)
        exams.append(Exam(name.name, tile, verdict))
    return exams


def write(exams: list[Exam], folder: Path) -> dict[str, float]:
    """Write `sheet.png` and `sheet.json` into `folder`; returns the shares named in top 1 and top 5."""
    rows, line = -(-len(exams) // COLUMNS), 14
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, exam in enumerate(exams):
        x, y = i % COLUMNS * TILE, i // COLUMNS * (TILE + line)
        sheet.paste(exam.tile, (x, y))
        place = exam.verdict.index(exam.name) + 1 if exam.name in exam.verdict else 0
        colour = "darkgreen" if place == 1 else "darkorange" if place else "firebrick"
        draw.text((x + 3, y + TILE), exam.name, fill=colour)
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / "sheet.png")
    shares = {f"top_{k}": float(np.mean([exam.name in exam.verdict[:k] for exam in exams])) for k in (1, 5)}
    record = {"edits": len(exams), **shares, "verdicts": [[e.name, e.verdict] for e in exams]}
    (folder / "sheet.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return shares
