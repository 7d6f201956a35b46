"""What stands in a picture: classifiers, which judge edits and never choose among them.

The bundled judge saw the same kind of composites as the bundled generator and shares nothing else with
it, nor with the ranker. Any image classifier of transformers can take its place.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from bld.errors import ModelUnavailable
from bld.masks import FloatArray, mask_box
from bld.models.load import find, pick_device
from bld.models.networks import read_network
from bld.models.weights import fingerprint, is_pickled

FILES = ("*.json", "*.safetensors")  # of a hub repository


class Classifier(Protocol):
    """Names what stands in the mask of a picture."""

    name: str  # as the user gave it
    revision: str  # of its weights
    labels: tuple[str, ...]

    def view(self, picture: FloatArray, mask: FloatArray) -> torch.Tensor:
        """What it looks at: 1 3 h w, for a picture h w 3 in [0, 1] and its mask h w."""
        ...

    def probabilities(self, view: torch.Tensor) -> FloatArray:
        """Of each label, adding up to 1."""
        ...

    def features(self, view: torch.Tensor) -> list[torch.Tensor]:
        """Its activations, coarser and coarser: 1 c h w each."""
        ...


def likeliest(probabilities: FloatArray, k: int) -> list[int]:
    """The places of the `k` likeliest labels, best first; equal ones in the order of the labels."""
    return [int(i) for i in np.argsort(-probabilities, kind="stable")[:k]]


def load_classifier(
    name: str, model: str = "mini", *, device: str = "auto", pickles: bool = False
) -> Classifier:
    """The classifier of a name: "auto" is the judge in the model's folder; else a folder or a hub id of
    an image classifier. pickles: whether that model may have pickled weights; a classifier may not.
    Raises ModelUnavailable for anything else.
    """
    where = pick_device(device)
    if name != "auto":
        return MaskedClassifier(find(name, FILES), name=name, device=where)
    folder = find(model, pickles=pickles) / "judge"
    if not folder.is_dir():
        raise ModelUnavailable(f"{model} has no judge of its own: name an image classifier with --classifier")
    return Judge(folder, name=f"{model}/judge", device=where)


class _Network:
    """A classifier of transformers, its labels and its activations."""

    def __init__(self, folder: Path, *, name: str, device: torch.device) -> None:
        """Raises ModelUnavailable for a folder that is not a whole image classifier."""
        from transformers import AutoModelForImageClassification

        if is_pickled(folder):
            raise ModelUnavailable(f"classifier {name}: its weights are pickled; give one with safetensors")
        try:
            network = read_network(folder, AutoModelForImageClassification, torch.float32)
        except Exception as error:  # OSError, ValueError, SafetensorError, ...
            reason = str(error).partition("\n")[0].strip() or type(error).__name__
            raise ModelUnavailable(f"classifier {name}: not an image classifier ({reason})") from error
        self.name, self.revision, self.device = name, fingerprint(folder), device
        self.network = network.to(device)
        names = self.network.config.id2label
        self.labels = tuple(names[i] for i in range(len(names)))

    @torch.no_grad()
    def probabilities(self, view: torch.Tensor) -> FloatArray:
        logits = self.network(view.to(self.device)).logits[0]
        return np.asarray(logits.softmax(0).float().cpu().numpy())

    @torch.no_grad()
    def features(self, view: torch.Tensor) -> list[torch.Tensor]:
        states = self.network(view.to(self.device), output_hidden_states=True).hidden_states
        return [state for state in states if state.ndim == 4]


class Judge(_Network):
    """The bundled judge: it looks at the square around the mask's box, with what surrounds the edit."""

    def view(self, picture: FloatArray, mask: FloatArray) -> torch.Tensor:
        box, (height, width) = mask_box((mask > 0).astype(np.float32)), mask.shape
        edges = torch.tensor([[box.top, box.left, box.bottom, box.right]], dtype=torch.float32)
        square = squared(edges) / torch.tensor([height, width, height, width])  # of pixels, then in [0, 1]
        image = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None]
        side = self.network.config.image_size
        coarser = max(box.height, box.width) // (2 * side)  # or `look` would take one pixel of so many
        if coarser > 1:
            image = F.interpolate(image, (-(-height // coarser), -(-width // coarser)), mode="area")
        return look(image, square, side) * 2 - 1


class MaskedClassifier(_Network):
    """Any image classifier: it looks at the edit on black, as in section 5.1 of the paper.

    At all of it: the picture is scaled to the size that the checkpoint's own preprocessing gives, which
    often crops the middle, where a mask at the side would be cut away.
    """

    def __init__(self, folder: Path, *, name: str, device: torch.device) -> None:
        """Raises ModelUnavailable for a folder that is not an image classifier with its preprocessing."""
        from transformers import AutoImageProcessor

        super().__init__(folder, name=name, device=device)
        try:
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        except Exception as error:
            reason = str(error).partition("\n")[0].strip() or type(error).__name__
            raise ModelUnavailable(
                f"classifier {name}: its preprocessing cannot be read ({reason})"
            ) from error

    def view(self, picture: FloatArray, mask: FloatArray) -> torch.Tensor:
        pixels = np.rint(on_black(picture, mask) * 255).astype(np.uint8)
        height, width = self._processed(pixels).shape[2:]
        scaled = Image.fromarray(pixels).resize((width, height), self.processor.resample)
        return self._processed(np.asarray(scaled), do_resize=False, do_center_crop=False)

    def _processed(self, pixels: npt.NDArray[np.uint8], **options: bool) -> torch.Tensor:
        """What the checkpoint's preprocessing makes of a picture h w 3: 1 3 h w."""
        made: torch.Tensor = self.processor(
            images=pixels, input_data_format="channels_last", return_tensors="pt", **options
        ).pixel_values
        return made


def on_black(picture: FloatArray, mask: FloatArray) -> FloatArray:
    """A picture, h w 3, where its mask, h w, is not 0, and black elsewhere."""
    return picture * (mask > 0)[..., None]


def label_index(labels: Sequence[str], name: str) -> int:
    """The place of a name among labels, which may be lists of synonyms ("tabby, tabby cat").

    Raises ModelUnavailable if it is not there.
    """
    for place, label in enumerate(labels):
        if name in [word.strip() for word in label.split(",")] or name == label:
            return place
    raise ModelUnavailable(
        f"the classifier has no label {name!r}, which the suite asks for: give one that does"
    )


def look(image: torch.Tensor, box: torch.Tensor, side: int) -> torch.Tensor:
    """Cut boxes (b 4: top, left, bottom, right in [0,1]) out of b 3 s s, scaled to b 3 side side."""
    line = (torch.arange(2 * side, device=image.device) + 0.5) / (2 * side)
    y = box[:, 0, None] + (box[:, 2] - box[:, 0])[:, None] * line
    x = box[:, 1, None] + (box[:, 3] - box[:, 1])[:, None] * line
    grid = torch.stack([x[:, None].expand(-1, 2 * side, -1), y[:, :, None].expand(-1, -1, 2 * side)], -1)
    sampled = F.grid_sample(image, grid * 2 - 1, padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(sampled, 2)


def squared(box: torch.Tensor) -> torch.Tensor:
    """The squares around boxes, b 4."""
    centre = (box[:, :2] + box[:, 2:]) / 2
    half = (box[:, 2:] - box[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1)
