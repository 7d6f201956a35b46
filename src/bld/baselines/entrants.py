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
    """The painter of a name in PAINTERS. where: its weights, if not the small ones of the package.

    guide: the folder of the CLIPModel that guides those in GUIDED; others need none. perceptual: for their
    background's loss, the squared error alone if None. Raises ModelUnavailable for weights that are not whole
    or are another's.
    """
    where = where or _bundled(name)
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
