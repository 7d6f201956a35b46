"""The recipes of the small baselines, on material made here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bld.baselines.entrants import PAINTERS, PARTS, load_painter
from bld.baselines.unet import UNet
from bld.errors import InvalidInput
from bld.options import EditOptions, resolve
from bld.training import autoencoder, glide, pixels, vqgan
from bld.training.composites import Compositor, background_pool
from bld.training.data import Sprites
from bld.training.limits import Limits
from bld.training.pictures import PictureRing, Pictures
from bld.training.recipes import RECIPES, Pixels
from bld.training.run import Training
from bld.training.vocabulary import Name
from tests.tiny import tiny_clip

NAMES = (Name(name="ball", group="things", sprite="ball"), Name(name="box", group="things", sprite="box"))
TINY = replace(RECIPES["tiny"], flat=False)


@pytest.fixture(scope="module")
def compositor() -> Compositor:
    """Two cut-outs, a red and a blue square, before grey."""
    rgba = torch.zeros(2, 4, 160, 160, dtype=torch.uint8)
    rgba[:, 3, 20:140, 20:140] = 255
    rgba[0, 0], rgba[1, 2] = rgba[0, 3], rgba[1, 3]
    sprites = Sprites(
        rgba=rgba, name=torch.tensor([0, 1]), extent=torch.full((2, 2), 0.375),
        flies=torch.zeros(2, dtype=torch.bool), hue=torch.full((2,), torch.nan),
        flat=torch.zeros(2, dtype=torch.bool), keywords={},
    )  # fmt: skip
    grey = np.full((64, 64, 3), 128, np.uint8)
    return Compositor(sprites, background_pool([grey], grey[None], 8, 64, seed=0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pictures_serve_several_times_and_their_boxes_follow(compositor: Compositor) -> None:
    ring = PictureRing(compositor, 32, reuse=4, kept=256, generator=generator())
    before = ring.drawn
    for _ in range(16):
        found = ring.draw(16)
    assert ring.drawn == before + 16 * 16 // 4
    again = PictureRing(compositor, 32, reuse=4, kept=256, generator=generator())
    assert torch.equal(
        again.draw(16).image,
        PictureRing(compositor, 32, reuse=4, kept=256, generator=generator()).draw(16).image,
    )
    line = (torch.arange(32) + 0.5) / 32
    for image, box, name in zip(found.image, found.box, found.name, strict=True):
        if name < 0:
            continue
        colour = image[0] - image[2] if name == 0 else image[2] - image[0]
        shape = (colour > 0.3).float()
        middle = (shape.sum(0) * line).sum() / shape.sum()
        assert abs(float(middle - (box[1] + box[3]) / 2)) < 0.15, "mirrored with its picture"


def test_boxes_are_unknown_and_sometimes_everything() -> None:
    box = torch.tensor([[0.25, 0.5, 0.75, 1.0]]).expand(2000, 4)
    nothing = torch.zeros(2000, dtype=torch.int64)
    pictures = Pictures(torch.zeros(2000, 3, 8, 8), box, nothing, nothing, nothing)
    m = glide.known(pictures, generator())
    assert m.shape == (2000, 1, 8, 8)
    everything = m.flatten(1).sum(1) == 0
    assert abs(float(everything.float().mean()) - glide.UNKNOWN) < 0.04
    wanted = torch.ones(8, 8)
    wanted[2:6, 4:] = 0
    share = float((m[~everything][:, 0] == wanted).all(2).all(1).float().mean())
    assert abs(share - (1 - glide.ELSEWHERE)) < 0.05


def test_a_vqgan_begins_as_its_autoencoder() -> None:
    """Not quantised, it gives that one's pictures; two convolutions became one, hence the tolerance."""
    vae = autoencoder.build(TINY.autoencoder, 64)
    found = vqgan.build(TINY.vqgan, vae)
    x = torch.rand(2, 3, 64, 64, generator=generator()) * 2 - 1
    with torch.no_grad():
        z = found.encode(x).latents
        torch.testing.assert_close(z, vae.encode(x).latent_dist.mean, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            found.decode(z, force_not_quantize=True).sample, vae.decode(z).sample, atol=1e-5, rtol=1e-4
        )
        before = (z - found.quantize(z)[0]).square().mean()
        vqgan.fill_codebook(found, x, generator())
        assert (z - found.quantize(z)[0]).square().mean() < before / 4


def test_a_base_begins_as_the_model_of_pixels() -> None:
    model = UNet(pixels.shape(Pixels(samples=1, side=32, channels=8, multiples=(1, 2), groups=4)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator(weight.numel())) * 0.1)
    recipe = replace(TINY, pixels=Pixels(samples=1, side=32, channels=8, multiples=(1, 2), groups=4))
    base = glide.build(recipe, 640, upsampler=False)
    glide.begin_with(base, model)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 700])
    with torch.no_grad():
        assert torch.equal(base(torch.cat([x, torch.randn(2, 4, 32, 32)], 1), t), model(x, t))


def test_all_are_trained_and_enter(
    compositor: Compositor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(TINY, tmp_path, tmp_path, None, torch.device("cpu"))
    monkeypatch.setattr(Training, "compositor", lambda self, seed, **kind: compositor)
    monkeypatch.setattr(Training, "names", NAMES)
    for part, needs in (("vqgan", "autoencoder"), ("glide", "pixels")):
        with pytest.raises(InvalidInput, match=f"no {needs} yet"):
            training.run(part)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no pixels, vqgan, glide/tokenizer, "):
        training.run("export-baselines")
    for part in ("autoencoder", "pixels", "vqgan"):
        training.run(part)  # type: ignore[arg-type]
    late = replace(training, recipe=replace(TINY, limits=Limits(deadline=0)))
    late.run("glide")
    with pytest.raises(InvalidInput, match="has no glide/base, glide/upsampler yet"):
        training.run("export-baselines")
    with pytest.raises(InvalidInput, match="run bld train glide first"):
        training.need("glide")
    training.run("glide")
    training.run("export-baselines")
    x, m = torch.zeros(1, 3, 128, 128), torch.zeros(128, 128)
    m[30:90, 40:80] = 1
    tiny_clip(tmp_path / "clip")
    options = resolve(
        EditOptions(steps=2, seed=1), steps=2, guidance_scale=2.0, shrink=False, soft_mask=False, feather=0
    )
    for name in PAINTERS:
        painter = load_painter(name, tmp_path / "baselines" / PARTS[name], tmp_path / "clip")
        side = painter.side
        made = painter.paint(
            x[..., :side, :side], m[:side, :side], "a ball", seeds=[1], options=options,
            progress=lambda done: None,
        )  # fmt: skip
        assert made.shape == (1, 3, side, side)
        assert torch.isfinite(made).all()
