"""From predictions to steps: what DDIM must do where the right answer is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bld.models.base import CLEAN, Level
from bld.models.trajectory import Prediction, clean_and_noise, deterministic, multistep, start
from tests.tiny import FAMILIES, Family, clean_given, ddim_steps, variance_preserving_levels

PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")


def output_of(prediction: Prediction, z_0: torch.Tensor, eps: torch.Tensor, level: Level) -> torch.Tensor:
    """What a perfect network of each kind would say."""
    return {
        "epsilon": eps,
        "sample": z_0,
        "v_prediction": level.signal * eps - level.sigma * z_0,
    }[prediction]


# --- levels ---


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_level_scales_the_picture_and_adds_its_noise(signal: float, sigma: float) -> None:
    z, eps = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 4.0])
    expected = torch.tensor([2 * signal + 0.5 * sigma, -signal + 4 * sigma])
    # A product and a sum in float32, of numbers up to 5: three roundings of at most 2.4e-7.
    torch.testing.assert_close(Level(signal, sigma).noise(z, eps), expected, atol=1e-6, rtol=0)


def test_the_clean_level_changes_nothing() -> None:
    z = torch.randn(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(CLEAN.noise(z, torch.full_like(z, 1e30)), z)


# --- predictions ---


@pytest.mark.parametrize("prediction", PREDICTIONS)
@given(angle=st.floats(0.05, 1.5), seed=st.integers(0, 1000))
def test_a_perfect_prediction_gives_back_picture_and_noise(
    prediction: Prediction, angle: float, seed: int
) -> None:
    z_0, eps = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    level = Level(math.cos(angle), math.sin(angle))
    output = output_of(prediction, z_0, eps, level)
    found = clean_and_noise(output, level.noise(z_0, eps), level, prediction)
    # Double precision; dividing by a signal or sigma of 0.05 costs a factor of 20.
    torch.testing.assert_close(found, (z_0, eps), atol=1e-12, rtol=0)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_where_no_signal_is_left_the_picture_is_still_predicted(prediction: Prediction) -> None:
    """Zero terminal SNR: sampling starts on a level from which no epsilon leads to a picture."""
    z_0, eps, level = torch.tensor([1.5, -2.0]), torch.tensor([0.3, 0.7]), Level(0.0, 1.0)
    found = clean_and_noise(output_of(prediction, z_0, eps, level), eps, level, prediction)
    assert torch.equal(torch.stack(found), torch.stack([z_0, eps]))


# --- steps ---


def test_steps_join_and_end_clean() -> None:
    levels, seen = variance_preserving_levels(4), []

    def predict(z: torch.Tensor, t: int) -> torch.Tensor:
        seen.append(t)
        return torch.zeros_like(z)

    steps = deterministic(levels, [999, 749, 499, 249], predict, "v_prediction")
    assert [step.level_in for step in steps] == levels
    assert [step.level_out for step in steps] == [*levels[1:], CLEAN]
    for step in steps:
        step.denoise(torch.zeros(1))
    assert seen == [999, 749, 499, 249]


def test_levels_and_timesteps_must_pair_up() -> None:
    with pytest.raises(ValueError, match="zip"):
        deterministic(variance_preserving_levels(3), [2, 1], lambda z, t: z, "epsilon")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_knows_the_picture_ends_on_it(prediction: Prediction) -> None:
    """Whatever the noise, and with steps that may be taken again: they hold no state."""
    z_0, eps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    levels = variance_preserving_levels(10)[1:]  # an epsilon needs some signal to subtract from

    def predict(z: torch.Tensor, t: int) -> torch.Tensor:
        level = levels[t]
        return output_of(prediction, z_0, (z - level.signal * z_0) / level.sigma, level)

    steps = deterministic(levels, range(len(levels)), predict, prediction)
    for _ in range(2):
        z = levels[0].noise(z_0, eps)
        for step in steps:
            z = step.denoise(z)
        torch.testing.assert_close(z, z_0, atol=1e-12, rtol=0)  # double precision, nine steps


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_sampling_tends_to_the_exact_flow_of_the_distribution(family: Family) -> None:
    """The probability-flow ODE of a normal distribution has a closed form: standard scores stay."""
    mean, spread = torch.tensor(0.7).double(), 0.3
    levels, make = FAMILIES[family]
    noise = torch.linspace(-2, 2, 9).double()
    exact = mean + spread * noise

    def error(steps: int) -> float:
        z = noise
        for step in make(levels(steps), mean, spread):
            z = step.denoise(z)
        return float((z - exact).abs().max())

    if family.endswith(("dpm++", "unipc")):  # second order: five times the steps, a 25th of the error
        assert error(50) < 0.02
        assert error(1000) < error(200) / 8
        return
    # First-order methods: the error is inverse to the number of steps, here about 1.5 / steps.
    assert error(50) < 0.1
    assert error(1000) < 0.1 / 15


def test_a_multistep_solver_remembers_what_the_model_said_and_not_what_became_of_z() -> None:
    """Between steps z is blended: only the guesses of the step before may count."""
    levels, said = variance_preserving_levels(4), iter([0.0, 1.0, 3.0, 0.0])
    steps = multistep(levels, range(4), lambda z, t: torch.full_like(z, next(said)), "sample")
    steps[0].denoise(torch.zeros(1))
    steps[1].denoise(torch.zeros(1))  # whatever came out of either is thrown away
    z = torch.tensor([0.4])
    ratios = [math.log(level.signal / level.sigma) for level in levels[1:]]
    ahead = (ratios[2] - ratios[1]) / (2 * (ratios[1] - ratios[0]))
    z_0 = 3.0 + ahead * (3.0 - 1.0)
    expected = levels[3].noise(torch.tensor([z_0]), (z - levels[2].signal * z_0) / levels[2].sigma)
    torch.testing.assert_close(steps[2].denoise(z), expected)
    assert {id(step.memory) for step in steps} == {id(steps[0].memory)}


def test_unipc_corrects_by_the_guesses_alone_so_that_what_was_blended_into_z_stays() -> None:
    levels = variance_preserving_levels(4)

    def third(z: float, correct: bool = True) -> float:
        said = iter([0.0, 1.0, 3.0])
        steps = multistep(levels, range(4), lambda z, t: torch.full_like(z, next(said)), "sample", correct)
        for step in steps[:2]:
            step.denoise(torch.zeros(1))
        return float(steps[2].denoise(torch.tensor([z])))

    share = levels[3].sigma / levels[2].sigma
    assert third(0.9) - third(0.4) == pytest.approx(0.5 * share, abs=1e-6)  # float32
    assert third(0.4) != third(0.4, correct=False)


@given(st.floats(-1, 1), st.floats(0.1, 1), st.floats(0.1, 1.4))
def test_the_tests_own_denoiser_is_the_posterior_mean(z: float, spread: float, angle: float) -> None:
    """Against the same expectation by numerical integration: tests/tiny.py has to be right too."""
    level, mean = Level(math.cos(angle), math.sin(angle)), 0.2
    z_0 = torch.linspace(mean - 10 * spread, mean + 10 * spread, 4001).double()
    log_density = -((z_0 - mean) ** 2) / (2 * spread**2)
    log_density -= (z - level.signal * z_0) ** 2 / (2 * level.sigma**2)
    expected = float((torch.softmax(log_density, 0) * z_0).sum())
    found = clean_given(torch.tensor(z).double(), level, torch.tensor(mean).double(), spread)
    assert float(found) == pytest.approx(expected, abs=1e-6)  # the grid ends ten spreads away


# --- strength ---


@pytest.mark.parametrize(
    ("steps", "strength", "run"),
    [
        (50, 1.0, 50),
        (50, 0.75, 38),  # 37.5 goes up
        (50, 0.5, 25),
        (50, 0.01, 1),  # 0.5 goes up
        (10, 0.01, 1),  # 0.1 does not, but one step always runs
        (10, 0.14, 1),
        (10, 0.16, 2),
        (1, 0.3, 1),
        (1, 1.0, 1),
        (1000, 0.999, 999),
    ],
)
def test_strength_in_steps(steps: int, strength: float, run: int) -> None:
    assert steps - start(steps, strength) == run


def test_a_weak_start_keeps_more_of_the_picture() -> None:
    levels = variance_preserving_levels(20)
    z_init, eps = torch.tensor(5.0), torch.tensor(0.0)
    ends = []
    for strength in (1.0, 0.6, 0.2):
        running = levels[start(20, strength) :]
        z = running[0].noise(z_init, eps)
        for step in ddim_steps(running, torch.tensor(0.0), 1.0):
            z = step.denoise(z)
        ends.append(float(z))
    assert ends[0] < ends[1] < ends[2] <= 5
