"""The systems that the paper compares with, behind the editor's own request and result."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from bld import EditOptions
from bld.baselines import pixels
from bld.baselines.entrants import PAINTERS, PARTS, load_painter
from bld.baselines.glide import Known, eight_bits
from bld.baselines.painter import BaselineEditor, Painter, background_distance
from bld.baselines.unet import UNet
from bld.errors import ModelUnavailable
from bld.evaluation.methods import baseline_options
from bld.evaluation.timing import parameters
from bld.models.load import BUNDLED
from bld.options import resolve
from bld.rank import load_ranker
from tests.baselines import PIXELS, SIDE, filled, tiny_baselines

PHOTO = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
MASK = np.zeros((70, 90), np.float32)
MASK[20:44, 30:58] = 1
STEPS = 4
OPTIONS = EditOptions(candidates=3, seed=5, steps=STEPS, context_pixels=8, batch_size=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_baselines(tmp_path_factory.mktemp("baselines") / "tiny")


@pytest.fixture(scope="module")
def painter(tiny: Path) -> "Loader":
    return cache(lambda name: load_painter(name, tiny / PARTS[name], tiny / "clip"))


Loader = type(lambda name: name)


def crop() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    m = torch.zeros(SIDE, SIDE)
    m[9:23, 10:27] = 1
    return x, m


def painted(painter: Painter, *seeds: int, prompt: str = "a red apple", **changes: float) -> torch.Tensor:
    x, m = crop()
    options = resolve(
        replace(OPTIONS, **changes), steps=1, guidance_scale=5.0, shrink=False, soft_mask=False, feather=0
    )
    with torch.random.fork_rng():
        return painter.paint(x, m, prompt, seeds=seeds, options=options, progress=lambda done: None)


@pytest.mark.parametrize("name", PAINTERS)
def test_each_answers_as_the_editor_does(name: str, painter: Loader, tiny: Path) -> None:
    one = painter(name)
    editor = BaselineEditor(one, load_ranker(str(tiny / "clip"), "mini", device="cpu"))
    steps: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "paint":
            assert done <= total
            steps.append(done)

    options = replace(OPTIONS, reconstruct=one.reconstruct)
    result = editor.edit(PHOTO, MASK, "a red apple", options=options, progress=progress)
    assert sorted(c.seed for c in result.candidates) == [5, 6, 7]
    scores = [c.score for c in result.candidates]
    assert scores == sorted(scores, reverse=True)
    assert steps == sorted(steps)
    assert steps[-1] == 2 * one.passes(STEPS)
    for candidate in result.candidates:
        pixels = candidate.photograph.pixels
        assert pixels.shape == PHOTO.shape
        assert not np.array_equal(pixels[MASK > 0], PHOTO[MASK > 0])
        kept = np.array_equal(pixels[MASK == 0], PHOTO[MASK == 0])
        assert kept == (one.reconstruct == "stitch")
    assert (result.model, result.options.steps) == (one.name, STEPS)


@pytest.mark.parametrize("name", PAINTERS)
def test_a_candidate_does_not_depend_on_its_neighbours(name: str, painter: Loader) -> None:
    """Batched kernels sum in another order: within rounding, which guidance may amplify a little."""
    together, alone = painted(painter(name), 3, 4), painted(painter(name), 4)
    torch.testing.assert_close(together[1:], alone, atol=2e-3, rtol=1e-3)
    assert not torch.allclose(together[:1], alone, atol=1e-2) or name == "paintbyword"


def test_their_own_batches_and_backgrounds(painter: Loader) -> None:
    """Those of the paper, section 5.1; no more than asked for, and none of our own steps and guidance."""
    ours = EditOptions(candidates=24, steps=50, guidance_scale=7.0, reconstruct="poisson", seed=1)
    own = {name: baseline_options(painter(name), ours, candidates=None, steps=None) for name in PAINTERS}
    assert [own[name].candidates for name in PAINTERS] == [64, 64, 1, 24, 24]
    assert [own[name].reconstruct for name in PAINTERS] == ["stitch", "none", "none", "stitch", "stitch"]
    assert {(o.steps, o.guidance_scale, o.seed) for o in own.values()} == {(None, None, 1)}
    assert [painter(name).steps for name in PAINTERS] == [100, 100, 500, 100, 100]
    few = [baseline_options(painter(name), ours, candidates=8, steps=9) for name in PAINTERS]
    assert [(o.candidates, o.steps) for o in few] == [(8, 9), (8, 9), (1, 9), (8, 9), (8, 9)]


def test_small_weights_make_less() -> None:
    """Of what their authors would, so that the comparison is done in hours."""
    small = [load_painter(name, None, BUNDLED / "mini" / "ranker") for name in PAINTERS]
    assert [painter.candidates for painter in small] == [8, 8, 1, 8, 8]
    assert [painter.steps for painter in small] == [100, 100, 100, 100, 100]


def test_a_long_prompt_is_refused_by_all(painter: Loader) -> None:
    for name in PAINTERS:
        assert painter(name).excess("a red apple") == ""
        assert painter(name).excess("apple " * 40)


# --- GLIDE ---


def test_the_known_part_comes_back(painter: Loader) -> None:
    """Not where a place of the base is edited in part: there nothing is known (places of 2 px here)."""
    x, m = crop()
    made = painted(painter("glide-filtered"), 1, 2)
    unknown = F.interpolate(F.max_pool2d(m[None, None], 2), scale_factor=2.0)[0, 0] > 0
    off = (made - x).abs()
    assert off[:, :, ~unknown].max() < 1e-6
    assert off[:, :, unknown].mean() > 0.1


def test_masked_sees_nothing_of_the_photograph(painter: Loader) -> None:
    x, m = crop()
    options = resolve(OPTIONS, steps=1, guidance_scale=5.0, shrink=False, soft_mask=False, feather=0)
    words = {"seeds": [1], "options": options, "progress": lambda done: None}
    for name, same in (("glide-masked", True), ("glide-filtered", False)):
        first, second = (painter(name).paint(y, m, "a guitar", **words) for y in (x, -x))
        inside = m > 0
        assert torch.equal(first[..., inside], second[..., inside]) == same


def test_guidance_moves_away_from_no_text(painter: Loader) -> None:
    """Scale 1 is the text alone; another prompt or more guidance gives another picture."""
    one = painter("glide-filtered")
    plain = painted(one, 1, guidance_scale=1.0)
    assert not torch.equal(plain, painted(one, 1, guidance_scale=5.0))
    assert not torch.equal(plain, painted(one, 1, prompt="a guitar on a table", guidance_scale=1.0))


def test_what_is_known_is_shown_with_one_for_keep() -> None:
    x = torch.full((1, 3, 4, 4), 0.5)
    m = torch.zeros(1, 1, 4, 4)
    m[..., 2:] = 1
    known = Known(x, m)
    shown = known.shown(torch.zeros(2, 3, 4, 4))
    assert shown.shape == (2, 7, 4, 4)
    assert torch.equal(shown[:, 3:6], (x * m).expand(2, -1, -1, -1))
    assert torch.equal(shown[:, 6:], m.expand(2, -1, -1, -1))
    assert torch.equal(known.into(torch.full((2, 3, 4, 4), 9.0))[..., :2], torch.ones(2, 3, 4, 2))
    assert torch.equal(known.into(torch.full((2, 3, 4, 4), 9.0))[..., 2:], torch.full((2, 3, 4, 2), 0.5))
    values = (eight_bits(torch.linspace(-1, 1, 999)) + 1) * 127.5
    torch.testing.assert_close(values, values.round(), atol=1e-3, rtol=0)


# --- PaintByWord++ ---


@pytest.mark.parametrize("name", ["local-clip", "paintbyword"])
def test_a_perceptual_distance_joins_the_loss_of_the_background(name: str, tiny: Path) -> None:
    asked = []

    def perceptual(outside: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        asked.append((outside.detach(), kept))
        return 1000 * (outside - kept).abs().mean((1, 2, 3))

    words = name, tiny / PARTS[name], tiny / "clip"
    with_it, without = load_painter(*words, perceptual=perceptual), load_painter(*words)
    assert (painted(with_it, 5) - painted(without, 5)).abs().max() > 1e-3
    x, m = crop()
    for outside, kept in asked:
        assert (outside * m).abs().max() == 0
        torch.testing.assert_close(kept, x * (1 - m))


def test_without_a_free_cell_it_is_the_autoencoder(painter: Loader) -> None:
    one, (x, m) = painter("paintbyword"), crop()
    options = resolve(OPTIONS, steps=1, guidance_scale=1.0, shrink=False, soft_mask=False, feather=0)
    made = one.paint(x, 0 * m, "a guitar", seeds=[1], options=options, progress=lambda done: None)
    with torch.no_grad():
        assert torch.equal(made, one.vqgan(x).sample)


def test_iterations_bring_it_nearer_to_the_prompt(painter: Loader) -> None:
    one, (x, m) = painter("paintbyword"), crop()
    d = one.guide.text("a red apple")

    def loss(y: torch.Tensor) -> float:
        far = one.guide.distance(y * m, d, augmentations=16, generator=torch.Generator().manual_seed(9))
        return float(far + background_distance(y, x, m, None))

    assert loss(painted(one, 1, steps=20)) < loss(painted(one, 1, steps=1))


# --- weights ---


def test_published_weights_load_by_path(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint under its own names, at a size that fits a test."""
    monkeypatch.setattr(pixels, "RELEASED", replace(PIXELS, outputs=6))
    unet = filled(UNet(pixels.RELEASED))
    torch.save(unet.state_dict(), tmp_path / "256x256_diffusion_uncond.pt")
    words = (tmp_path / "256x256_diffusion_uncond.pt", tiny / "clip")
    with pytest.raises(ModelUnavailable, match="--allow-pickle"):
        load_painter("blended-diffusion", *words)
    loaded = load_painter("blended-diffusion", *words, pickles=True)
    assert torch.isfinite(painted(loaded, 1)).all()
    assert parameters(loaded) == sum(p.numel() for p in unet.parameters()), "CLIP's are not its own"
    with pytest.raises(ModelUnavailable, match="no such file"):
        load_painter("local-clip", tmp_path / "nowhere.pt", tiny / "clip")
    with pytest.raises(ModelUnavailable, match="CLIP guide"):
        load_painter("local-clip", tiny / "pixels", tiny / "pixels")
    with pytest.raises(ModelUnavailable, match="tokenizer"):
        load_painter("glide-filtered", tiny / "pixels", tiny / "clip")


def test_revisions_follow_the_weights(tiny: Path, painter: Loader) -> None:
    names = {painter(name).revision for name in PAINTERS}
    assert len(names) == 3, "one of each folder"
    assert load_file(tiny / "pixels" / "model.safetensors").keys() == UNet(PIXELS).state_dict().keys()
