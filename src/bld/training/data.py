"""Reading the training material: cut-outs, scenery and photographs from their webdataset tars."""

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bld.errors import InvalidInput
from bld.training.colours import COLOURS, ONE_COLOUR, dominant
from bld.training.vocabulary import Name, vocabulary

FLUENT, NOTO = "sprites-fluent3d-256.tar", "sprites-noto-256.tar"
SCENERY = "backgrounds-1024.tar"
PHOTOGRAPHS = ("photos-grocery-256.tar", "photos-clothing-256.tar")

SPRITE_FILL = 0.9  # of a cut-out's canvas, which its long side fills
HELD_OUT_SCENES = 8  # of 47: the last ones by name are for evaluation only


@dataclass(frozen=True)
class Sprites:
    """Cut-outs of the vocabulary, each trimmed to its outline and centred on a square canvas.

    rgba: n 4 s s, uint8, colours premultiplied by alpha.
    name: n, int64, index into the vocabulary. extent: n 2, half height and half width of the outline
    as a share of the canvas. flies: n, bool. hue: n, degrees, of those with one colour that may be
    changed, else NaN. flat: n, bool, drawn rather than rendered.
    """

    rgba: torch.Tensor
    name: torch.Tensor
    extent: torch.Tensor
    flies: torch.Tensor
    hue: torch.Tensor
    flat: torch.Tensor
    keywords: dict[str, tuple[str, ...]]

    def to(self, device: torch.device) -> "Sprites":
        """The same cut-outs on another device."""
        tensors = {
            name: getattr(self, name).to(device)
            for name in ("rgba", "name", "extent", "flies", "hue", "flat")
        }
        return replace(self, **tensors)


def samples(tar: Path) -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
    """(key, picture, facts) of a webdataset tar, in the tar's order.

    Raises InvalidInput if the tar is missing.
    """
    if not tar.is_file():
        raise InvalidInput(f"no training data at {tar}: name its folder with --data")
    with tarfile.open(tar) as archive:
        pictures: dict[str, bytes] = {}
        for member in archive:
            key, _, ending = member.name.rpartition(".")
            content = archive.extractfile(member)
            if content is None:
                continue
            if ending == "json":
                yield key, Image.open(io.BytesIO(pictures.pop(key))), json.load(content)
            else:
                pictures[key] = content.read()


def trimmed(picture: Image.Image, side: int) -> tuple[np.ndarray, tuple[float, float]]:
    """A cut-out on its canvas: (side side 4 uint8 premultiplied, (half height, half width))."""
    rgba = picture.convert("RGBA")
    box = rgba.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox() or (0, 0, *rgba.size)
    rgba = rgba.crop(box).convert("RGBa")  # premultiplied, so that resampling leaves no dark fringe
    scale = SPRITE_FILL * side / max(rgba.size)
    width, height = (max(1, round(length * scale)) for length in rgba.size)
    rgba = rgba.resize((width, height), Image.Resampling.BICUBIC)
    canvas = np.zeros((side, side, 4), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = np.asarray(rgba)
    return canvas, (height / side / 2, width / side / 2)


def everything(data: Path) -> tuple[Name, ...]:
    """A name for every cut-out but flags and symbols: those of the vocabulary, and the others' captions."""
    core = vocabulary()
    taken = {name.sprite for name in core}
    others = (
        Name(name=spoken(caption), group=facts["group"], sprite=caption, article=not plural(caption))
        for _, _, facts in samples(data / FLUENT)
        if facts["group"] not in ("Flags", "Symbols") and (caption := facts["caption"]) not in taken
    )
    known = {name.name for name in core}
    return (*core, *(name for name in others if name.name not in known))


def spoken(caption: str) -> str:
    """A cut-out's caption as a user would type it: "man: red hair" is a man with red hair."""
    what, _, which = caption.lower().partition(": ")
    return f"bald {what}" if which == "bald" else f"{what} with {which}" if which else what


def plural(caption: str) -> bool:
    """Whether a caption looks like a plural, which takes no article: "glasses", but not "compass"."""
    return caption.endswith("s") and not caption.endswith(("ss", "us"))


def load_sprites(
    data: Path, names: tuple[Name, ...], tars: tuple[str, ...] = (FLUENT,), side: int = 160
) -> Sprites:
    """The cut-outs that show `names`, on canvases of `side` px, and the keywords of one name alone."""
    index = {name.sprite: i for i, name in enumerate(names)}
    found = [
        (index[facts["caption"]], *trimmed(picture, side), tuple(facts["keywords"]), tar == NOTO)
        for tar in tars
        for _, picture, facts in samples(data / tar)
        if facts["caption"] in index
    ]
    missing = set(range(len(names))) - {i for i, *_ in found}
    if missing:
        raise InvalidInput(f"no cut-out shows {', '.join(names[i].name for i in sorted(missing))}")
    owners: dict[str, set[int]] = {}
    for i, _, _, words, _ in found:
        for word in words:
            owners.setdefault(word.lower(), set()).add(i)
    own = {
        names[i].name: tuple(sorted(w for w, who in owners.items() if who == {i})) for i in range(len(names))
    }
    rgba = torch.from_numpy(np.stack([c for _, c, *_ in found]).transpose(0, 3, 1, 2).copy())
    return Sprites(
        rgba=rgba,
        name=torch.tensor([i for i, *_ in found]),
        extent=torch.tensor([extent for _, _, extent, *_ in found], dtype=torch.float32),
        flies=torch.tensor([names[i].flies for i, *_ in found]),
        hue=changeable_hues(rgba, [names[i].name for i, *_ in found]),
        flat=torch.tensor([flat for *_, flat in found]),
        keywords=own,
    )


def changeable_hues(rgba: torch.Tensor, names: list[str]) -> torch.Tensor:
    """The hue of each cut-out, NaN if it has several, none, or one that its name says ("a red apple")."""
    hues = []
    for part in torch.split(rgba, 64):
        cutouts = part.float() / 255
        alpha = cutouts[:, 3]
        pictures = cutouts[:, :3] / alpha[:, None].clamp(min=1e-3)
        hue, share = dominant(pictures.clamp(0, 1), (alpha > 0.5).float())
        hues.append(torch.where(share < ONE_COLOUR, torch.nan, hue))
    named = torch.tensor([any(word in COLOURS for word in name.split()) for name in names])
    return torch.where(named, torch.nan, torch.cat(hues))


def load_scenery(data: Path, *, held_out: bool, short_side: int = 512) -> list[np.ndarray]:
    """Scenery photographs, h w 3 uint8 with the given short side; the training or the held-out part."""
    scenes = sorted(samples(data / SCENERY), key=lambda sample: sample[0])
    chosen = scenes[-HELD_OUT_SCENES:] if held_out else scenes[:-HELD_OUT_SCENES]
    pictures = []
    for _, picture, _ in chosen:
        scale = short_side / min(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        pictures.append(np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)))
    return pictures


def load_photographs(data: Path, *, held_out: bool, every: int = 1, side: int = 192) -> np.ndarray:
    """Photographs of fruit, vegetables and clothes: n side side 3, uint8, centre-cropped.

    Nine in ten are for training, the tenth is held out; `every` takes each n-th of them.
    """
    kept = []
    for tar in PHOTOGRAPHS:
        pictures = (picture for _, picture, _ in samples(data / tar))
        mine = (picture for number, picture in enumerate(pictures) if (number % 10 == 9) == held_out)
        for picture in itertools.islice(mine, 0, None, every):
            short = min(picture.size)
            left, top = (picture.width - short) // 2, (picture.height - short) // 2
            square = picture.convert("RGB").crop((left, top, left + short, top + short))
            kept.append(np.asarray(square.resize((side, side), Image.Resampling.LANCZOS)))
    return np.stack(kept)
