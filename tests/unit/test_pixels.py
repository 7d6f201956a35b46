"""Blended Diffusion and local CLIP-guided diffusion: on a model that is exact, where answers are known."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from bld.baselines.diffusion import noised
from bld.baselines.guide import ClipGuide, extended, spherical
from bld.baselines.pixels import (
    BLENDED_DIFFUSION,
    LOCAL_CLIP_GUIDED,
    Guidance,
    guided_diffusion,
    levels,
)
from tests.tiny import tiny_clip

SIDE = 16
ALPHA_BAR = DDPMScheduler(beta_schedule="linear").alphas_cumprod
SHORT = {"steps": 12, "skipped": 3, "augmentations": 2}


class Gaussian:
    """The exact noise predictor of pictures N(mean, spread^2); learned: says so of its variance."""

    name, revision, side, alpha_bar = "gaussian", "exact", SIDE, ALPHA_BAR

    def __init__(self, mean: float = 0.2, spread: float = 0.1, share: float | None = None) -> None:
        self.mean, self.spread, self.share = mean, spread, share

    def predict(self, x: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        a = float(self.alpha_bar[t])
        gain = self.spread**2 * a**0.5 / (self.spread**2 * a + 1 - a)
        x_0 = self.mean + gain * (x - a**0.5 * self.mean)
        share = None if self.share is None else torch.full_like(x, self.share)
        return (x - a**0.5 * x_0) / (1 - a) ** 0.5, share


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> ClipGuide:
    folder: Path = tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")
    return ClipGuide(
        CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder),
        CLIPImageProcessorPil.from_pretrained(folder),
    )  # fmt: skip


def photograph() -> torch.Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def box() -> torch.Tensor:
    m = torch.zeros(SIDE, SIDE)
    m[4:12, 3:10] = 1
    return m


def last(guide: ClipGuide, guidance: Guidance, seeds: tuple[int, ...] = (0,), **model: float) -> torch.Tensor:
    *_, x = guided_diffusion(
        Gaussian(**model), guide, photograph(), box(), "a red apple", seeds=seeds, guidance=guidance
    )
    return x


def test_the_schedule_is_respaced_and_its_first_quarter_skipped() -> None:
    ladder = levels(ALPHA_BAR, BLENDED_DIFFUSION)
    assert len(ladder) == 75
    assert ladder[-1].t == 0
    assert ladder[-1].alpha_bar_next == 1
    assert levels(ALPHA_BAR, Guidance(skipped=0))[0].t == 999
    for before, after in itertools.pairwise(ladder):
        assert before.alpha_bar_next == after.alpha_bar


def test_steps_without_guidance_are_diffusers_ancestral_ones(guide: ClipGuide) -> None:
    """The mean and variance of every step beside DDPMScheduler's, given the same noise (float32: 1e-5)."""
    scheduler = DDPMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(12)
    plain = Guidance(steps=12, skipped=0, clip=0, range=0, augmentations=1, blended=False)
    ladder, model = levels(ALPHA_BAR, plain), Gaussian()
    assert [level.t for level in ladder] == scheduler.timesteps.tolist()
    x = photograph()
    generator = torch.Generator().manual_seed(0)
    expected = noised(x, ladder[0].alpha_bar, torch.randn(x.shape[1:], generator=generator)[None])
    # CLIP's augmentations draw from the same generator, but with one view there are none.
    steps = guided_diffusion(model, guide, x, box(), "an apple", seeds=(0,), guidance=plain)
    for level, found in zip(ladder, steps, strict=True):
        eps, _ = model.predict(expected, level.t)
        mean = scheduler.step(eps, level.t, expected, generator=torch.Generator().manual_seed(9)).prev_sample
        if level.alpha_bar_next < 1:
            drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
            sd = scheduler._get_variance(level.t) ** 0.5
            mean = mean - sd * drawn + sd * torch.randn(x.shape[1:], generator=generator)
        expected = mean
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_outside_the_mask_the_edit_is_the_photograph(guide: ClipGuide) -> None:
    x = last(guide, Guidance(**SHORT), (0, 1))
    outside = box() == 0
    assert torch.equal(x[:, :, outside], photograph().expand(2, -1, -1, -1)[:, :, outside])
    assert not torch.equal(x[0], x[1])


def test_without_blending_the_background_is_free_and_its_loss_holds_it(guide: ClipGuide) -> None:
    outside = box() == 0
    errors = []
    for weight in (0.0, LOCAL_CLIP_GUIDED.background):
        guidance = Guidance(**SHORT, background=weight, blended=False)
        x = last(guide, guidance, spread=0.8)
        errors.append(float((x - photograph())[0][:, outside].square().mean()))
    assert errors[1] < errors[0] / 2


def test_guidance_goes_towards_the_prompt(guide: ClipGuide) -> None:
    d = guide.text("a red apple")
    found = []
    for weight in (0.0, 1000.0):
        x = last(guide, Guidance(**SHORT, clip=weight), (0, 1, 2), spread=0.5)
        found.append(float(spherical(guide.image(x * box()), d).mean()))
    assert found[1] < found[0]


def test_a_candidate_does_not_depend_on_its_neighbours(guide: ClipGuide) -> None:
    """Batched kernels sum in another order: within rounding, which guidance may amplify a little."""
    guidance = Guidance(**SHORT)
    together = last(guide, guidance, (5, 6, 7))
    for place, seed in enumerate((5, 6, 7)):
        torch.testing.assert_close(together[place], last(guide, guidance, (seed,))[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_learned_variance_lies_between_the_posteriors_and_betas(guide: ClipGuide, share: float) -> None:
    plain = Guidance(steps=12, skipped=0, clip=0, range=0, augmentations=1, blended=False)
    if share == 0:
        torch.testing.assert_close(last(guide, plain, share=share), last(guide, plain))
    else:
        assert not torch.allclose(last(guide, plain, share=share), last(guide, plain))


def test_the_range_loss_keeps_values_in_range(guide: ClipGuide) -> None:
    beyond = []
    for weight in (0.0, 50_000.0):
        x = last(guide, Guidance(**SHORT, clip=0, range=weight), mean=1.5, spread=0.3)
        beyond.append(float((x.abs() - 1).clamp(min=0)[..., box() > 0].mean()))
    assert beyond[1] < beyond[0]


@given(st.floats(0.01, math.pi - 0.01))
def test_the_spherical_distance_is_half_the_squared_angle(angle: float) -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([math.cos(angle), math.sin(angle)])
    assert float(spherical(a, b)) == pytest.approx(angle**2 / 2, rel=1e-3)


def test_augmentations_keep_the_first_view_and_move_the_others() -> None:
    x = photograph().repeat(2, 1, 1, 1)
    views = extended(x, 4, torch.Generator().manual_seed(0))
    assert views.shape == (8, 3, SIDE, SIDE)
    assert torch.equal(views[:2], x)
    moved = [bool((view - x[0]).abs().max() > 0.05) for view in views[2:]]
    assert sum(moved) >= 4, "each is turned or tilted with probability 0.91"
    flat = extended(torch.full((1, 3, 8, 8), 0.5), 16, torch.Generator().manual_seed(0))
    torch.testing.assert_close(flat, torch.full_like(flat, 0.5))  # the border goes on beyond it
