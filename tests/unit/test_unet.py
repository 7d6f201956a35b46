"""The Stable Diffusion family, on a folder of random weights."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bld.errors import BldError, InvalidInput
from bld.models.base import CLEAN
from bld.models.load import load_model
from bld.models.unet import UNetModel
from bld.options import DType, EditOptions, resolve
from bld.training.recipes import SCHEDULER
from tests.tiny import SD1_SCHEDULER, TINY_GUIDANCE, TINY_SIZE, TINY_STEPS, tiny_folder

GRID = (8, 8)
WORDS_READ = 46  # of 48 tokens; start and end of text take two


def options(**changes: Any) -> EditOptions:
    return resolve(
        EditOptions(seed=0, **changes), steps=50, guidance_scale=3.0, shrink=False, soft_mask=False, feather=0
    )


def sampled(model: UNetModel, prompt: str, n: int = 1, **changes: Any) -> torch.Tensor:
    """n latents by plain sampling, from noise that is always the same."""
    z = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))[:n]
    for step in model.trajectory(prompt, options(steps=2, **changes), GRID):
        z = step.denoise(z)
    return z


@pytest.fixture
def passes(tiny_model: UNetModel) -> Iterator[list[int]]:
    """How many latents each pass of the UNet took."""
    counted: list[int] = []
    handle = tiny_model.unet.register_forward_pre_hook(lambda _, args: counted.append(len(args[0])))
    yield counted
    handle.remove()


# --- what it says of itself ---


def test_the_facts_are_the_folders(tiny_model: UNetModel) -> None:
    assert tiny_model.latent_factor == 8
    assert tiny_model.native_size == TINY_SIZE
    assert tiny_model.multiple == 32  # 8 for the autoencoder, and the UNet halves twice
    assert (tiny_model.guidance_scale, tiny_model.steps) == (TINY_GUIDANCE, TINY_STEPS)
    assert re.fullmatch(r"[0-9a-f]{12}", tiny_model.revision)


def test_the_revision_is_of_the_weights(tiny: Path, tmp_path: Path) -> None:
    again = tiny_folder(tmp_path / "again")
    first, second = load_model(str(tiny)), load_model(str(again))
    assert first.revision == second.revision
    weights = again / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert load_model(str(again)).revision != first.revision


def test_it_is_ready_to_run_and_cannot_be_trained_by_accident(tiny_model: UNetModel) -> None:
    for module in (tiny_model.vae, tiny_model.unet, tiny_model.text_encoder):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


# --- encode and decode ---


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (128, 64)])
def test_a_picture_becomes_latents_of_an_eighth_and_back(
    tiny_model: UNetModel, size: tuple[int, int]
) -> None:
    height, width = size
    z = tiny_model.encode(torch.zeros(2, 3, height, width))
    assert z.shape == (2, 4, height // 8, width // 8)
    image = tiny_model.decode(z)
    assert image.shape == (2, 3, height, width)
    assert z.dtype == image.dtype == torch.float32


def test_encoding_draws_nothing(tiny_model: UNetModel) -> None:
    """The posterior's mean: the same picture gives the same latents."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(tiny_model.encode(x), tiny_model.encode(x))
    posterior = tiny_model.vae.encode(x).latent_dist
    assert torch.equal(tiny_model.encode(x), posterior.mean * tiny_model.vae.config.scaling_factor)


def test_the_scaling_factor_is_applied_once_each_way(
    tiny_model: UNetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion's is 0.18215; the bundled model's is 1, where a mistake would not show."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z, image = tiny_model.encode(x), tiny_model.decode(tiny_model.encode(x))
    config = dict(tiny_model.vae.config, scaling_factor=0.25)
    monkeypatch.setattr(tiny_model.vae, "_internal_dict", type(tiny_model.vae.config)(config))
    assert torch.equal(tiny_model.encode(x), 0.25 * z)
    assert torch.equal(tiny_model.decode(0.25 * z), image)  # a power of two: exact


# --- prompts ---


@pytest.mark.parametrize("prompt", ["", "a red apple", " ".join(["a"] * WORDS_READ)])
def test_a_prompt_that_fits_is_read_whole(tiny_model: UNetModel, prompt: str) -> None:
    assert tiny_model.excess(prompt) == ""


def test_the_excess_is_what_has_no_effect(tiny_model: UNetModel) -> None:
    head, tail = " ".join(["a"] * WORDS_READ), "cat on a table"
    assert tiny_model.excess(f"{head} {tail}").strip() == tail
    assert torch.equal(tiny_model.embed(f"{head} {tail}"), tiny_model.embed(head))
    shorter = " ".join(["a"] * (WORDS_READ - 1))
    assert not torch.equal(tiny_model.embed(f"{shorter} cat"), tiny_model.embed(f"{shorter} apple"))


def test_an_embedding_has_a_row_for_every_token(tiny_model: UNetModel) -> None:
    width = tiny_model.text_encoder.config.hidden_size
    assert tiny_model.embed("a red apple").shape == (1, WORDS_READ + 2, width)


def test_one_thread_at_a_time_reads_a_prompt(tiny_model: UNetModel) -> None:
    """A tokenizer remembers how the last call had it pad and cut: with two at once some hundred go wrong."""
    long = " ".join(["a"] * WORDS_READ) + " cat"
    with ThreadPoolExecutor(2) as pool:
        unread = pool.submit(lambda: [tiny_model.excess(long).strip() for _ in range(2000)])
        told = [tiny_model.conditions(f"{i} cats", (64, 64))["text"] for i in range(1000)]
    assert {one.shape for one in told} == {(1, WORDS_READ + 2, tiny_model.text_encoder.config.hidden_size)}
    assert set(unread.result()) == {"cat"}


# --- guidance ---


def test_the_prompt_matters(tiny_model: UNetModel) -> None:
    assert not torch.equal(sampled(tiny_model, "a red apple"), sampled(tiny_model, "a guitar"))


def test_the_negative_prompt_matters_under_guidance_only(tiny_model: UNetModel) -> None:
    plain = sampled(tiny_model, "a cat")
    assert not torch.equal(plain, sampled(tiny_model, "a cat", negative_prompt="a guitar"))
    unguided = sampled(tiny_model, "a cat", guidance_scale=1)
    turned_away = sampled(tiny_model, "a cat", guidance_scale=1, negative_prompt="a guitar")
    assert torch.equal(unguided, turned_away)


@pytest.mark.parametrize(("scale", "latents"), [(1, [3, 3]), (1.01, [6, 6]), (7.5, [6, 6])])
def test_a_scale_of_1_takes_one_pass(
    tiny_model: UNetModel, passes: list[int], scale: float, latents: list[int]
) -> None:
    sampled(tiny_model, "a cat", n=3, guidance_scale=scale)
    assert passes == latents


def test_outside_the_guided_part_a_step_takes_one_pass(tiny_model: UNetModel, passes: list[int]) -> None:
    """Of ten steps those from the second to the fourth are guided: a tenth is left out, and from 0.4 on."""
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    part = {"steps": 10, "guidance_start": 0.1, "guidance_end": 0.4}
    steps = {
        name: tiny_model.trajectory("a cat", options(**asked), GRID)
        for name, asked in (
            ("part", part), ("all", {"steps": 10}), ("none", {"steps": 10, "guidance_scale": 1})
        )
    }  # fmt: skip
    passes.clear()
    for i in range(10):
        found = steps["part"][i].denoise(z)
        assert torch.equal(found, steps["all" if 1 <= i < 4 else "none"][i].denoise(z))
    assert passes == [n for i in range(10) for n in ([4, 4] if 1 <= i < 4 else [2, 2])]


def test_a_prompt_is_read_once(tiny_model: UNetModel) -> None:
    """By the text encoder: for every micro-batch, candidate and edit of a session."""
    read: list[int] = []
    handle = tiny_model.text_encoder.register_forward_pre_hook(lambda *_: read.append(1))
    for prompt in ("a new prompt", "another new prompt", "a new prompt"):
        sampled(tiny_model, prompt, negative_prompt="nothing new")
    handle.remove()
    assert len(read) == 3


def test_guidance_is_linear_in_its_scale(tiny_model: UNetModel) -> None:
    """In the first step; and a prompt that equals the negative one is guided nowhere."""

    def first(scale: float, negative_prompt: str = "") -> torch.Tensor:
        asked = options(steps=2, guidance_scale=scale, negative_prompt=negative_prompt)
        step = tiny_model.trajectory("a cat", asked, GRID)[0]
        return step.denoise(torch.ones(1, 4, 8, 8))

    one, three, five = first(1), first(3), first(5)
    # float32, values of about 1; a pass of one latent and a pass of two round differently.
    torch.testing.assert_close(five - three, three - one, atol=1e-4, rtol=0)
    torch.testing.assert_close(first(5, negative_prompt="a cat"), one, atol=1e-4, rtol=0)


def test_a_batch_equals_its_singles(tiny_model: UNetModel) -> None:
    together = sampled(tiny_model, "a cat", n=3)
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for i in range(3):
        z = noise[i : i + 1]
        for step in tiny_model.trajectory("a cat", options(steps=2), GRID):
            z = step.denoise(z)
        # Not to the bit: matrix products of another batch size add up in another order.
        torch.testing.assert_close(together[i : i + 1], z, atol=1e-4, rtol=1e-4)


# --- trajectories ---


@pytest.fixture(scope="module")
def sd1_model(tmp_path_factory: pytest.TempPathFactory) -> UNetModel:
    """The same weights under Stable Diffusion 1's scheduler file."""
    folder = tiny_folder(tmp_path_factory.mktemp("sd1") / "tiny", scheduler=SD1_SCHEDULER)
    model = load_model(str(folder))
    assert isinstance(model, UNetModel)
    return model


@pytest.fixture(params=["bundled", "sd1"])
def scheduled(request: pytest.FixtureRequest, tiny_model: UNetModel, sd1_model: UNetModel) -> UNetModel:
    return {"bundled": tiny_model, "sd1": sd1_model}[request.param]


def test_the_bundled_schedule_starts_without_signal(tiny_model: UNetModel) -> None:
    level = tiny_model.trajectory("a cat", options(steps=5), GRID)[0].level_in
    assert level == (0.0, 1.0)
    assert SCHEDULER["rescale_betas_zero_snr"]


def test_stable_diffusion_1_starts_on_its_own_first_level(sd1_model: UNetModel) -> None:
    """50 steps, spaced "leading" from step 1: the first is 981, where alpha_bar is 0.0058."""
    level = sd1_model.trajectory("a cat", options(steps=50), GRID)[0].level_in
    assert level.signal**2 == pytest.approx(0.0058, abs=5e-5)


@given(steps=st.integers(1, 1000), strength=st.sampled_from([0.01, 0.5, 0.75, 1.0]))
@example(steps=1000, strength=1.0)
def test_any_number_of_steps_runs_down_to_clean(
    tiny_model: UNetModel, sd1_model: UNetModel, steps: int, strength: float
) -> None:
    for model in (tiny_model, sd1_model):
        trajectory = model.trajectory("", options(steps=steps, strength=strength), GRID)
        assert len(trajectory) == max(1, int(steps * strength + 0.5))
        levels = [trajectory[0].level_in, *(step.level_out for step in trajectory)]
        assert [step.level_in for step in trajectory] == levels[:-1]
        sigmas = [level.sigma for level in levels]
        assert sigmas == sorted(set(sigmas), reverse=True)
        assert levels[-1] == CLEAN
        assert levels[-2].sigma > 0
        for signal, sigma in levels:
            assert signal**2 + sigma**2 == pytest.approx(1, abs=1e-6)  # alpha_bar is a float32


@pytest.mark.parametrize("steps", [61, 122, 999, 1000])
def test_the_network_is_asked_for_timesteps_it_knows(scheduled: UNetModel, steps: int) -> None:
    """At 61 steps diffusers' own "trailing" list has a 62nd entry, -1; at 1000 "leading" says 1000."""
    asked: list[int] = []
    asked_for = options(steps=steps, guidance_scale=1, scheduler="dpm++")  # which divides by their distances
    trajectory = scheduled.trajectory("", asked_for, GRID)
    handle = scheduled.unet.register_forward_pre_hook(lambda _, args: asked.append(int(args[1])))
    try:
        for step in (trajectory[0], trajectory[-1]):
            step.denoise(torch.zeros(1, 4, 8, 8))
    finally:
        handle.remove()
    assert len(trajectory) == steps
    assert 0 <= asked[1] <= asked[0] <= 999
    assert asked[1] <= 1000 / steps


def test_more_steps_than_levels_are_refused(tiny_model: UNetModel, monkeypatch: Any) -> None:
    fewer = {**tiny_model.scheduler, "num_train_timesteps": 100}
    monkeypatch.setattr(tiny_model, "scheduler", fewer)
    assert len(tiny_model.trajectory("a cat", options(steps=100), GRID)) == 100
    with pytest.raises(InvalidInput, match=r"--steps 101: .* knows 100 noise levels"):
        tiny_model.trajectory("a cat", options(steps=101), GRID)


def test_a_trajectory_is_fresh_and_holds_no_state(tiny_model: UNetModel) -> None:
    before = {name: value.clone() for name, value in tiny_model.unet.state_dict().items()}
    config = dict(tiny_model.scheduler)
    trajectory = tiny_model.trajectory("a cat", options(steps=3), GRID)
    z = torch.ones(1, 4, 8, 8)
    first, last = trajectory[0].denoise(z), trajectory[-1].denoise(z)
    assert torch.equal(trajectory[-1].denoise(z), last)  # in any order, any number of times
    assert torch.equal(trajectory[0].denoise(z), first)
    assert tiny_model.trajectory("a cat", options(steps=3), GRID) is not trajectory
    assert tiny_model.scheduler == config
    for name, value in tiny_model.unet.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_options_must_be_resolved(tiny_model: UNetModel) -> None:
    with pytest.raises(ValueError, match="resolved"):
        tiny_model.trajectory("a cat", EditOptions(), GRID)


def test_bfloat16_gives_nearly_the_same(tiny: Path, tiny_model: UNetModel) -> None:
    half = load_model(str(tiny), dtype="bfloat16")
    assert isinstance(half, UNetModel)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert half.decode(half.encode(x)).dtype == torch.float32
    # 8 bits of mantissa: each layer of about 20 rounds to 1 in 256, and some of it adds up.
    torch.testing.assert_close(half.encode(x), tiny_model.encode(x), atol=0.05, rtol=0.05)
    difference = sampled(half, "a cat") - sampled(tiny_model, "a cat")
    assert difference.std() < 0.1 * sampled(tiny_model, "a cat").std()


@pytest.mark.parametrize(
    ("dtype", "said"),
    [("bfloat16", "in bfloat16: use --dtype float32"), ("float32", "in float32: its weights")],
)
def test_values_that_are_not_numbers_are_told_with_the_models_dtype(
    tiny: Path, dtype: DType, said: str
) -> None:
    model = load_model(str(tiny), dtype=dtype)
    z = torch.full((1, 4, 8, 8), torch.nan)
    with pytest.raises(BldError, match=rf"gave values that are not numbers, {said}"):
        model.decode(z)
