"""What is asked of every method: photographs, rectangles and prompts, in a manifest that is built once.

The protocol is the paper's (section 5.1 and appendix C.1): for each photograph a random rectangle whose
sides are uniform in [dim/5, dim/2], and the name of a random class as prompt.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from bld.errors import InvalidInput
from bld.images import Photograph, open_photograph, save_png, write_text_atomic
from bld.masks import Box, FloatArray, random_rectangle
from bld.options import EditOptions

FORMAT = 1
MANIFEST = "suite.json"


@dataclass(frozen=True)
class Case:
    """One edit to make. photograph: its file, relative to the manifest. label: what a classifier should
    find. box: what to edit. seed: of whatever a method draws.
    """

    number: int
    photograph: str
    sha256: str
    box: Box
    prompt: str
    label: str
    seed: int

    def mask(self, size: tuple[int, int]) -> FloatArray:
        """The rectangle as a mask h w of 0 and 1."""
        mask = np.zeros(size, np.float32)
        mask[self.box.slices] = 1
        return mask


@dataclass(frozen=True)
class Suite:
    """The cases, and the folder that their photographs lie in."""

    folder: Path
    name: str
    cases: tuple[Case, ...]

    def open(self, case: Case) -> Photograph:
        """The photograph of a case. Raises InvalidInput if it is not the one that the manifest names."""
        path = self.folder / case.photograph
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"{path}: the suite's photograph {case.number} is not there") from error
        if hashlib.sha256(content).hexdigest() != case.sha256:
            raise InvalidInput(f"{path}: another picture than the one that {self.name} was built with")
        return open_photograph(content, max_pixels=EditOptions().max_pixels)

    @property
    def revision(self) -> str:
        """A short name for its cases: what is asked, and of which photographs."""
        cases = json.dumps([dataclasses.astuple(case) for case in self.cases])
        return hashlib.sha256(cases.encode()).hexdigest()[:12]

    def first(self, count: int) -> Self:
        """The suite of its first cases. Raises InvalidInput if it has fewer."""
        if not 1 <= count <= len(self.cases):
            raise InvalidInput(f"--cases {count}: {self.name} has 1 to {len(self.cases)}")
        return dataclasses.replace(self, cases=self.cases[:count])

    def write(self) -> None:
        """Write the manifest beside the photographs."""
        cases = [dataclasses.asdict(case) | {"box": list(case.box)} for case in self.cases]
        facts = {"format": FORMAT, "name": self.name, "cases": cases}
        write_text_atomic(self.folder / MANIFEST, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, manifest: Path) -> Self:
        """Read a manifest, or the one in a folder. Raises InvalidInput for anything else."""
        path = manifest / MANIFEST if manifest.is_dir() else manifest
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']}, this version reads {FORMAT}")
            cases = tuple(Case(**{**case, "box": Box(*case["box"])}) for case in facts["cases"])
            return cls(path.parent, str(facts["name"]), cases)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{path}: not the manifest of a suite ({error})") from error


def build(
    photographs: Iterable[tuple[str, Photograph]],
    labels: Sequence[tuple[str, str]],
    folder: Path,
    *,
    name: str,
    seed: int = 0,
) -> Suite:
    """Draw a rectangle and a class for every photograph, and write the photographs and the manifest.

    photographs: name and picture of each case. labels: (label, prompt) of each class; classes are drawn
    without repeats as far as they go. Raises InvalidInput if there is no class.
    """
    if not labels:
        raise InvalidInput(f"{folder}: no class to draw from; a suite needs one at least")
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []
    order: list[int] = []
    for number, (stem, photograph) in enumerate(photographs):
        file = folder / f"{number:03d}-{stem}.png"
        save_png(file, photograph)
        order = order or [int(i) for i in rng.permutation(len(labels))]
        label, prompt = labels[order.pop()]
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        box = random_rectangle(photograph.size, rng)
        cases.append(Case(number, file.name, digest, box, prompt, label, seed * 100_000 + number * 1000))
    suite = Suite(folder, name, tuple(cases))
    suite.write()
    return suite


def read_labels(path: Path) -> list[tuple[str, str]]:
    """The classes of a text file, one a line, and their prompts: the class, or what comes after a tab.

    Raises InvalidInput if there are none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot be read; give a text file with a class on each line") from error
    pairs = [line.partition("\t") for line in lines if line]
    if not pairs:
        raise InvalidInput(f"{path}: no class in it; give one on each line")
    return [(label.strip(), prompt.strip() or label.strip()) for label, _, prompt in pairs]


# --- the suite that comes with the project ---

MINI_SOURCES = ("astronaut", "coffee", "chelsea", "rocket")  # photographs of scikit-image
MINI_SIDE = 256  # px
MINI_CASES = {"mini": 50, "mini-200": 200}  # the longer begins as the shorter


def mini(name: str, folder: Path, labels: Sequence[tuple[str, str]]) -> Suite:
    """A suite of MINI_CASES, in `folder`: square crops of scikit-image's photographs, built if not there.

    Raises MissingExtra without scikit-image.
    """
    if (folder / MANIFEST).is_file():
        return Suite.read(folder)
    return build(_crops(MINI_CASES[name]), labels, folder, name=name)


def _crops(count: int) -> Iterable[tuple[str, Photograph]]:
    """Crops of random size and place, a source after the other, scaled to MINI_SIDE."""
    import cv2

    from bld.errors import MissingExtra

    try:
        from skimage import data
    except ImportError as error:
        raise MissingExtra(
            "the suite mini needs scikit-image: pip install 'blended-latent-diffusion[examples]'"
        ) from error
    rng = np.random.default_rng(1)
    sources: dict[str, Any] = {name: getattr(data, name)() for name in MINI_SOURCES}
    for number in range(count):
        name = MINI_SOURCES[number % len(MINI_SOURCES)]
        picture = sources[name]
        side = int(rng.integers(MINI_SIDE, min(picture.shape[:2]) + 1))
        top, left = (int(rng.integers(length - side + 1)) for length in picture.shape[:2])
        crop = np.ascontiguousarray(picture[top : top + side, left : left + side, :3])
        yield (
            name,
            Photograph(np.asarray(cv2.resize(crop, (MINI_SIDE, MINI_SIDE), interpolation=cv2.INTER_AREA))),
        )
