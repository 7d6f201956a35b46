"""Ranking: which of many candidates shows what the prompt asks for (section 4.4)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from bld.errors import ModelUnavailable
from bld.masks import FloatArray, mask_box
from bld.models.load import find, is_single, pick_device
from bld.models.weights import fingerprint
from bld.options import RankBy

CLIP_FILES = ("*.json", "*.txt", "*.safetensors")  # of a hub repository


class Ranker(Protocol):
    """Tells how well a picture fits a text. Higher is better; the scale is its own."""

    name: str  # as the user gave it
    revision: str  # of its weights

    def score(self, picture: FloatArray, prompt: str) -> float:
        """picture: h w 3 in [0, 1]. May be NaN where the ranker cannot tell."""
        ...


class Ranking(NamedTuple):
    """order: the candidates' places, best first. scores: of each candidate, in the order they came."""

    order: tuple[int, ...]
    scores: tuple[float, ...]


def rank(
    ranker: Ranker, pictures: Sequence[FloatArray], mask: FloatArray, prompt: str, by: RankBy
) -> Ranking:
    """Rank pictures of one size by how well they fit the prompt.

    pictures: h w 3 in [0, 1] each. mask: h w, 1 = edit. Each picture is looked at alone, so the order
    does not depend on how many there are. Equal scores keep the order they came in, and scores that are
    not finite come last.
    """
    scores = [
        float(np.mean([ranker.score(view, prompt) for view in views(picture, mask, by)]))
        for picture in pictures
    ]
    worst_last = [score if math.isfinite(score) else -math.inf for score in scores]
    order = sorted(range(len(scores)), key=lambda i: -worst_last[i])  # sorted is stable
    return Ranking(tuple(order), tuple(scores))


def views(picture: FloatArray, mask: FloatArray, by: RankBy) -> list[FloatArray]:
    """What the ranker is shown: the edit on black (the paper), its box, or both and the whole picture.

    The paper names what the first cannot see, the edit in its surroundings, as a limitation.
    """
    edited = (mask > 0).astype(np.float32)
    masked = picture * edited[..., None]
    boxed = picture[mask_box(edited).slices]
    return {"masked": [masked], "crop": [boxed], "ensemble": [masked, boxed, picture]}[by]


def load_ranker(name: str, model: str, *, device: str = "auto") -> Ranker | None:
    """The ranker of a name: a CLIPModel folder or hub id, "none", or "auto": the one in the model's folder.

    A model without a ranker of its own has none by "auto". Raises ModelUnavailable for a name that is no
    CLIP model.
    """
    if name == "none":
        return None
    if name != "auto":
        return ClipRanker(find(name, CLIP_FILES), name=name, device=pick_device(device))
    if is_single(model):
        return None
    own = find(model) / "ranker"
    return ClipRanker(own, name=f"{model}/ranker", device=pick_device(device)) if own.is_dir() else None


class ClipRanker:
    """A CLIPModel folder or hub id: the cosine between a picture's embedding and the prompt's."""

    def __init__(self, folder: Path, *, name: str, device: torch.device) -> None:
        """Raises ModelUnavailable for a folder that is not a whole CLIP model with its tokenizer."""
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            raise ModelUnavailable(f"ranker {name}: its weights are pickled; give one with safetensors")
        try:
            clip: Any
            clip, found = CLIPModel.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            made_up = [*found["missing_keys"], *found["mismatched_keys"]]
            if made_up:  # transformers would go on with random numbers
                raise ValueError(f"its weights lack {len(made_up)} tensors, such as {made_up[0]}")
            self.clip = clip.to(device).eval().requires_grad_(False)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder)
            self.processor = CLIPImageProcessorPil.from_pretrained(folder)
        except Exception as error:  # OSError, ValueError, SafetensorError, ...
            reason = str(error).partition("\n")[0].strip() or type(error).__name__
            raise ModelUnavailable(f"ranker {name}: not a CLIP model ({reason})") from error
        self.name, self.revision, self.device = name, fingerprint(folder), device

    @torch.no_grad()
    def score(self, picture: FloatArray, prompt: str) -> float:
        """Cosine between picture and prompt, -1 to 1. What the tokenizer does not read is cut."""
        pixels = np.rint(picture * 255).astype(np.uint8)
        seen = self.processor(images=pixels, return_tensors="pt").pixel_values.to(self.device)
        words = self.tokenizer(prompt, truncation=True, return_tensors="pt").to(self.device)
        image = self.clip.get_image_features(pixel_values=seen).pooler_output
        text = self.clip.get_text_features(**words).pooler_output
        return float(torch.cosine_similarity(image, text))
