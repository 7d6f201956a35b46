"""The systems that the paper compares with, by name: with small weights of the package, or published ones."""

from pathlib import Path

import torch

from bld.baselines.glide import Glide
from bld.baselines.guide import ClipGuide
from bld.baselines.paint_by_word import PaintByWord
from bld.baselines.painter import Painter, Perceptual
from bld.baselines.pixels import BLENDED_DIFFUSION, LOCAL_CLIP_GUIDED, GuidedPixels, PixelDiffusion
from bld.errors import ModelUnavailable

BUNDLED = Path(__file__).parent / "mini"
GUIDED = ("blended-diffusion", "local-clip", "paintbyword")  # by CLIP
PAINTERS = (*GUIDED, "glide-filtered", "glide-masked")
SMALL_BATCH, SMALL_STEPS = 8, 100  # what the small weights make at most, unless told otherwise
PARTS = dict(zip(PAINTERS, ("pixels", "pixels", "vqgan", "glide", "glide"), strict=True))  # of bld train


def load_painter(
    name: str,
    where: Path | None,
    guide: Path | None,
    *,
    device: torch.device | str = "cpu",
    pickles: bool = False,
    perceptual: Perceptual | None = None,
) -> Painter:
    """The painter of a name in PAINTERS. where: its weights, if not the small ones of the package, which make
    no more than SMALL_BATCH candidates in no more than SMALL_STEPS steps unless told otherwise.

    guide: the folder of the CLIPModel that guides those in GUIDED; others need none. perceptual: for their
    background's loss, the squared error alone if None. Raises ModelUnavailable for weights that are not whole
    or are another's.
    """
    painter = _loaded(name, where or _bundled(name), guide, device, pickles, perceptual)
    if where is None:
        painter.candidates = min(painter.candidates, SMALL_BATCH)
        painter.steps = min(painter.steps, SMALL_STEPS)
    return painter


def _loaded(
    name: str,
    where: Path,
    guide: Path | None,
    device: torch.device | str,
    pickles: bool,
    perceptual: Perceptual | None,
) -> Painter:
    if name not in GUIDED:
        glide = Glide.load(where, masked=name == "glide-masked", pickles=pickles)
        glide.base.to(device)
        glide.upsampler.to(device)
        return glide
    if guide is None:
        raise ValueError(f"{name} is guided by a CLIP")
    clip = ClipGuide.load(guide)
    clip.clip.to(device)
    if name == "paintbyword":
        painter = PaintByWord.load(where, clip, pickles=pickles, perceptual=perceptual)
        painter.vqgan.to(device)
        return painter
    model = PixelDiffusion.load(where, pickles=pickles)
    model.unet.to(device)
    guidance = BLENDED_DIFFUSION if name == "blended-diffusion" else LOCAL_CLIP_GUIDED
    return GuidedPixels(model, clip, guidance, perceptual)


def _bundled(name: str) -> Path:
    """The package's own weights of a painter. Raises ModelUnavailable if it has none."""
    folder = BUNDLED / PARTS[name]
    if not folder.is_dir():
        raise ModelUnavailable(
            f"{name}: the package has no weights of it; make them with bld train {PARTS[name]}, or take "
            f"published ones, and name them: {name}:PATH"
        )
    return folder
