"""Ranking: which of many candidates shows what the prompt asks for (section 4.4)."""

import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from bld.errors import ModelUnavailable
from bld.masks import FloatArray, mask_box
from bld.models.load import find, is_single, pick_device
from bld.models.networks import read_network
from bld.models.weights import fingerprint, is_pickled
from bld.options import RankBy

RANKER_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")  # of a hub repository

# What is loaded for each model_type that a configuration names: model, tokenizer, image processor.
RANKERS = {
    "clip": ("CLIPModel", "CLIPTokenizer", "CLIPImageProcessorPil"),
    "siglip": ("SiglipModel", "AutoTokenizer", "SiglipImageProcessorPil"),
}


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


def load_ranker(name: str, model: str, *, device: str = "auto", pickles: bool = False) -> Ranker | None:
    """The ranker of a name: folder or hub id of a CLIP or SigLIP, "none", or "auto": the model's own.

    A model without a ranker of its own has none by "auto". pickles: whether the model may have pickled
    weights; its ranker may not. Raises ModelUnavailable for a name that is no such model.
    """
    if name == "none":
        return None
    if name != "auto":
        return CosineRanker(find(name, RANKER_FILES), name=name, device=pick_device(device))
    if is_single(model):
        return None
    own = find(model, pickles=pickles) / "ranker"
    return CosineRanker(own, name=f"{model}/ranker", device=pick_device(device)) if own.is_dir() else None


class CosineRanker:
    """The cosine between a picture's embedding and the prompt's: CLIP, PickScore, SigLIP.

    What these models make of the cosine (a scale, a bias) changes no order.
    """

    def __init__(self, folder: Path, *, name: str, device: torch.device) -> None:
        """Raises ModelUnavailable for a folder that is not such a model, whole and with its tokenizer."""
        if is_pickled(folder):
            raise ModelUnavailable(f"ranker {name}: its weights are pickled; give one with safetensors")
        try:
            self.kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
            if self.kind not in RANKERS:
                raise ValueError(f"its config.json names the type {self.kind}")
            self._load(folder, device)
        except Exception as error:  # OSError, ValueError, SafetensorError, ImportError, ...
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ModelUnavailable(
                f"ranker {name}: not a model that ranks ({reason}); known are {', '.join(RANKERS)}, "
                "such as openai/clip-vit-base-patch16 and google/siglip2-base-patch16-224"
            ) from error
        self.name, self.revision, self.device = name, fingerprint(folder), device

    def _load(self, folder: Path, device: torch.device) -> None:
        import transformers

        model, tokenizer, processor = (getattr(transformers, kind) for kind in RANKERS[self.kind])
        self.network = read_network(folder, model, torch.float32).to(device)
        self.tokenizer = tokenizer.from_pretrained(folder)
        self.processor = processor.from_pretrained(folder)

    def _words(self, prompt: str) -> dict[str, torch.Tensor]:
        if self.kind == "clip":
            return dict(self.tokenizer(prompt, truncation=True, return_tensors="pt"))
        # SigLIP was trained on lower case, always padded and without a mask; its tokenizers say none of it.
        limit = self.network.config.text_config.max_position_embeddings
        padded = {"padding": "max_length", "max_length": limit, "truncation": True}
        return {"input_ids": self.tokenizer(prompt.lower(), return_tensors="pt", **padded).input_ids}

    @cached_property
    def text(self) -> Callable[[str], torch.Tensor]:
        """The embedding of a prompt, which is made once for all candidates and their views."""
        return lru_cache(maxsize=8)(self._embedded)

    @torch.no_grad()
    def _embedded(self, prompt: str) -> torch.Tensor:
        words = {name: tensor.to(self.device) for name, tensor in self._words(prompt).items()}
        embedding: torch.Tensor = self.network.get_text_features(**words).pooler_output
        return embedding

    @torch.no_grad()
    def score(self, picture: FloatArray, prompt: str) -> float:
        """Cosine between picture and prompt, -1 to 1. What the tokenizer does not read is cut.

        All of the picture is scaled to the network's square, of which CLIP's own preprocessing crops the
        middle: of the box of a long mask it would see no ends.
        """
        side = self.network.config.vision_config.image_size
        pixels = Image.fromarray(np.rint(picture * 255).astype(np.uint8))
        # Told, for a box of 1, 3 or 4 rows could be either.
        seen = self.processor(
            images=np.asarray(pixels.resize((side, side), self.processor.resample)),
            return_tensors="pt", input_data_format="channels_last", do_resize=False, do_center_crop=False,
        )  # fmt: skip
        image = self.network.get_image_features(pixel_values=seen.pixel_values.to(self.device)).pooler_output
        return float(torch.cosine_similarity(image, self.text(prompt)))
