"""Whoever enters the evaluation: our editor, the baselines, a folder of pictures, a function, a URL."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bld.baselines.painter import Painter
from bld.baselines.remote import RemoteEdits
from bld.editor import Editor
from bld.errors import InvalidInput
from bld.evaluation.ranking import in_order
from bld.evaluation.suite import Case
from bld.images import Photograph, open_photograph, to_pil
from bld.masks import FloatArray, check_same_size
from bld.models.base import LatentModel
from bld.models.weights import sampled
from bld.options import EditOptions
from bld.rank import Ranker

Picture = npt.NDArray[np.uint8]  # h w 3, of the photograph's size


class Method(Protocol):
    """A way to edit photographs by a mask and a prompt."""

    name: str  # in the tables and in the names of files
    facts: dict[str, Any]  # what its pictures depend on beside the case, as JSON has it

    def edit(self, photograph: Photograph, mask: FloatArray, case: Case) -> Sequence[Picture]:
        """The candidates, best first. mask: h w of 0 and 1, 1 = edit."""
        ...


class ByEditor:
    """An editor of this package: blended latent diffusion, or a baseline in its place."""

    def __init__(self, editor: Editor, options: EditOptions, name: str = "bld") -> None:
        self.editor, self.options, self.name = editor, options, name
        self.facts = facts(editor.model, editor.ranker, options)

    def edit(self, photograph: Photograph, mask: FloatArray, case: Case) -> Sequence[Picture]:
        options = replace(self.options, seed=case.seed)
        result = self.editor.edit(photograph, mask, case.prompt, options=options)
        return [in_8_bits(candidate.photograph) for candidate in result.candidates]


class Folder:
    """Finished pictures: FOLDER/000/00.png, 01.png, ..., the best first, a folder for each case."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises InvalidInput if there is no folder of the first case."""
        self.folder, self.name = folder, name
        self._files(0)
        pictures = sampled(folder, folder.glob("*/*.png"))
        self.facts = {"folder": str(folder.resolve()), "revision": pictures}

    def edit(self, photograph: Photograph, mask: FloatArray, case: Case) -> Sequence[Picture]:
        opened = [
            open_photograph(file, max_pixels=EditOptions().max_pixels) for file in self._files(case.number)
        ]
        for picture in opened:
            check_same_size(photograph.size, picture.size)
        return [in_8_bits(picture) for picture in opened]

    def _files(self, number: int) -> list[Path]:
        folder = self.folder / f"{number:03d}"
        files = in_order(folder)
        if not files:
            raise InvalidInput(f"{folder}: no pictures; expected 00.png, 01.png, ..., the best first")
        return files


class Function:
    """A Python function: (photograph h w 3 uint8, mask h w of 0 and 1, prompt, seed) to such pictures."""

    def __init__(self, target: str, name: str) -> None:
        """target: "module:function". Raises InvalidInput if there is none."""
        module, _, function = target.partition(":")
        try:
            self.function: Callable[..., Any] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise InvalidInput(f"python:{target}: expected module:function ({error})") from error
        self.name, self.facts = name, {"function": target}

    def edit(self, photograph: Photograph, mask: FloatArray, case: Case) -> Sequence[Picture]:
        pixels = in_8_bits(photograph)
        made = [np.asarray(p) for p in self.function(pixels.copy(), mask.copy(), case.prompt, case.seed)]
        for picture in made:
            if picture.shape != pixels.shape or picture.dtype != np.uint8:
                came = f"{picture.dtype} of shape {picture.shape}"
                raise InvalidInput(f"{self.name} gave {came}, expected uint8 of shape {pixels.shape}")
        return made


class Remote:
    """An images/edits endpoint."""

    def __init__(self, remote: RemoteEdits, name: str, batch: int) -> None:
        self.remote, self.name, self.batch = remote, name, batch
        self.facts = {"url": str(remote.client.base_url), "batch": batch}

    def edit(self, photograph: Photograph, mask: FloatArray, case: Case) -> Sequence[Picture]:
        made = self.remote.edit(photograph, mask, case.prompt, n=self.batch)
        for picture in made:
            check_same_size(photograph.size, picture.size)
        return [in_8_bits(picture) for picture in made]


def facts(model: LatentModel, ranker: Ranker | None, options: EditOptions) -> dict[str, Any]:
    """What edits by a model depend on: its weights, the ranker's, and every option, the model's own steps and
    guidance where none are asked for.
    """
    return {
        "model": model.name,
        "revision": model.revision,
        "ranker": ranker.name if ranker else None,
        "ranker_revision": ranker.revision if ranker else None,
        **asdict(options),
        "steps": options.steps or model.steps,
        "guidance_scale": options.guidance_scale or model.guidance_scale,
    }


def in_8_bits(photograph: Photograph) -> Picture:
    """The pixels of a photograph, h w 3 uint8."""
    return np.asarray(to_pil(photograph).convert("RGB"))


def baseline_options(
    painter: Painter, options: EditOptions, *, candidates: int | None, steps: int | None
) -> EditOptions:
    """The options of a baseline beside those of our editor: the same crop and the same ranker, but its own
    batch and steps unless they are given, guidance and background. One that makes one picture makes one.

    Of a small picture a quarter at most is context, so that the edit has as large a part of it as of others.
    """
    return replace(
        options,
        candidates=candidates if candidates and painter.candidates > 1 else painter.candidates,
        steps=steps,
        guidance_scale=None,
        strength=1.0,
        negative_prompt="",
        shrink=None,
        reconstruct=painter.reconstruct,
        context_pixels=min(options.context_pixels, painter.side // 4),
    )
