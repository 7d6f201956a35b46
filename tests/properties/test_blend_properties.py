"""What Algorithm 1 promises whatever the model: background, empty mask, full mask, batches.

The denoiser is exact (data of a normal distribution), so every claim is checked with nothing but
elementwise arithmetic, and "the same" means the same bits. `torch.equal` lets the sign of a zero
differ; nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bld.blend import blend, noise_like
from bld.masks import shrink_schedule
from bld.models.base import CLEAN, Step
from bld.models.trajectory import start
from tests.tiny import FAMILIES, Family

Seeds = list[int]


@dataclass(frozen=True)
class Problem:
    """Everything `blend` takes, except masks and generators."""

    family: Family
    steps: int
    strength: float
    z_init: torch.Tensor  # 1 c h w
    mean: float
    spread: float

    def trajectory(self) -> list[Step]:
        """A fresh list of steps: of a variance-preserving DDIM or of a flow-matching model."""
        levels, make = FAMILIES[self.family]
        running = levels(self.steps)[start(self.steps, self.strength) :]
        return make(running, torch.tensor(self.mean), self.spread)

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.z_init.shape[2:]
        return height, width

    def edit(self, masks: Sequence[torch.Tensor], generators: Seeds | list[torch.Generator]):
        """The last z for each candidate, n c h w; generators may be given as seeds."""
        return list(blend(self.trajectory(), self.z_init, masks, seeded(generators)))[-1]


def seeded(generators: Seeds | list[torch.Generator]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(g) if isinstance(g, int) else g for g in generators]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    shape = (1, draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    z = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**32))))
    return Problem(
        family=draw(st.sampled_from(sorted(FAMILIES))),
        steps=draw(st.integers(1, 8)),
        strength=draw(st.floats(0.01, 1)),
        z_init=z * draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0])),
        mean=draw(st.floats(-2, 2)),
        spread=draw(st.floats(0.01, 2)),
    )


# 2 in 5 values edit, 2 keep, and one does half of each: blending need not be binary.
CELLS = st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.5])
SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4)


def mask_for(problem: Problem) -> st.SearchStrategy[torch.Tensor]:
    return hnp.arrays(np.float32, problem.grid, elements=CELLS).map(torch.from_numpy)


def uniform(problem: Problem, value: float) -> list[torch.Tensor]:
    """One mask of a single value for every step."""
    return [torch.full(problem.grid, value)] * len(problem.trajectory())


# --- the three equalities ---


@given(st.data(), problems(), SEEDS)
def test_outside_the_mask_the_result_is_z_init(data: st.DataObject, problem: Problem, seeds: Seeds) -> None:
    m = data.draw(mask_for(problem))
    z = problem.edit([m] * len(problem.trajectory()), seeds)
    outside = (m == 0).expand_as(z)
    assert torch.equal(z[outside], problem.z_init.expand_as(z)[outside])


@given(problems(), SEEDS)
def test_an_empty_mask_gives_z_init(problem: Problem, seeds: Seeds) -> None:
    z = problem.edit(uniform(problem, 0), seeds)
    assert torch.equal(z, problem.z_init.expand_as(z))


@given(problems(), SEEDS)
def test_a_full_mask_is_plain_sampling_from_the_noised_z_init(problem: Problem, seeds: Seeds) -> None:
    trajectory = problem.trajectory()
    sampled = trajectory[0].level_in.noise(problem.z_init, noise_like(problem.z_init, seeded(seeds)))
    for step in trajectory:
        sampled = step.denoise(sampled)
    assert torch.equal(problem.edit(uniform(problem, 1), seeds), sampled)


# --- on the way ---


@given(st.data(), problems(), SEEDS)
def test_after_each_step_the_background_is_on_the_level_that_the_step_ended_on(
    data: st.DataObject, problem: Problem, seeds: Seeds
) -> None:
    trajectory = problem.trajectory()
    masks = data.draw(st.tuples(*[mask_for(problem)] * len(trajectory)))
    replayed = seeded(seeds)
    noise_like(problem.z_init, replayed)  # the start takes the first draw, then each step takes one
    states = blend(trajectory, problem.z_init, masks, seeded(seeds))
    for step, m, z in zip(trajectory, masks, states, strict=True):
        z_bg = step.level_out.noise(problem.z_init, noise_like(problem.z_init, replayed))
        outside = (m == 0).expand_as(z)
        assert torch.equal(z[outside], z_bg[outside])
    assert trajectory[-1].level_out == CLEAN


@given(st.data(), problems(), SEEDS)
def test_with_a_mask_per_step_the_last_one_decides_what_is_kept(
    data: st.DataObject, problem: Problem, seeds: Seeds
) -> None:
    """Shrinking or not: a cell that earlier masks edited and the last one keeps is z_init again."""
    masks = data.draw(st.tuples(*[mask_for(problem)] * len(problem.trajectory())))
    z = problem.edit(masks, seeds)
    outside = (masks[-1] == 0).expand_as(z)
    assert torch.equal(z[outside], problem.z_init.expand_as(z)[outside])


@given(st.data(), problems(), SEEDS)
def test_a_shrinking_mask_keeps_the_background_of_the_mask_itself(
    data: st.DataObject, problem: Problem, seeds: Seeds
) -> None:
    m = data.draw(mask_for(problem)).round()
    schedule = shrink_schedule(m.numpy(), len(problem.trajectory()), reference_side=4)
    z = problem.edit([torch.from_numpy(wider) for wider in schedule], seeds)
    outside = (m == 0).expand_as(z)
    assert torch.equal(z[outside], problem.z_init.expand_as(z)[outside])


@given(st.data(), problems(), SEEDS)
def test_a_trajectory_may_be_left_and_gone_on_with(
    data: st.DataObject, problem: Problem, seeds: Seeds
) -> None:
    trajectory = problem.trajectory()
    masks = data.draw(st.tuples(*[mask_for(problem)] * len(trajectory)))
    cut, generators = data.draw(st.integers(1, len(trajectory))), seeded(seeds)
    *_, z = blend(trajectory[:cut], problem.z_init, masks[:cut], generators)
    left_off = (z, trajectory[cut - 1].level_out)
    for z in blend(trajectory[cut:], problem.z_init, masks[cut:], generators, left_off):  # noqa: B007
        pass
    assert torch.equal(z, problem.edit(masks, seeds))


# --- candidates ---


@given(st.data(), problems(), SEEDS)
def test_a_candidate_is_the_same_whatever_the_batch(
    data: st.DataObject, problem: Problem, seeds: Seeds
) -> None:
    masks = data.draw(st.tuples(*[mask_for(problem)] * len(problem.trajectory())))
    together = problem.edit(masks, seeds)
    cut = data.draw(st.integers(0, len(seeds)), label="end of the first batch")
    batches = [batch for batch in (seeds[:cut], seeds[cut:]) if batch]
    assert torch.equal(together, torch.cat([problem.edit(masks, batch) for batch in batches]))
    for i, seed in enumerate(seeds):
        assert torch.equal(together[i], problem.edit(masks, [seed])[0])


@given(st.data(), problems(), SEEDS.filter(lambda seeds: len(seeds) > 1))
def test_a_candidate_does_not_see_its_neighbours_generators(
    data: st.DataObject, problem: Problem, seeds: Seeds
) -> None:
    masks = data.draw(st.tuples(*[mask_for(problem)] * len(problem.trajectory())))
    watched = data.draw(st.integers(0, len(seeds) - 1))
    disturbed = seeded(seeds)
    for i, generator in enumerate(disturbed):
        if i != watched:
            torch.rand(7, generator=generator)
    before, after = problem.edit(masks, seeds), problem.edit(masks, disturbed)
    assert torch.equal(before[watched], after[watched])


@given(problems(), SEEDS)
def test_an_edit_leaves_the_global_generator_alone(problem: Problem, seeds: Seeds) -> None:
    state = torch.get_rng_state()
    problem.edit(uniform(problem, 1), seeds)
    assert torch.equal(torch.get_rng_state(), state)


# --- the ends of a trajectory ---


@given(st.integers(1, 1000), st.floats(0.01, 1))
def test_strength_runs_its_share_of_the_steps_and_at_least_one(steps: int, strength: float) -> None:
    run = steps - start(steps, strength)
    assert 1 <= run <= steps
    assert run == 1 or abs(run - steps * strength) <= 0.5
    assert start(steps, 1.0) == 0


@pytest.mark.parametrize("change", [-1, 1])
@given(problem=problems())
def test_a_list_of_masks_of_another_length_is_refused(change: int, problem: Problem) -> None:
    m = torch.ones(problem.grid)
    with pytest.raises(ValueError, match="zip"):
        problem.edit([m] * (len(problem.trajectory()) + change), [0])


@given(st.data(), problems(), SEEDS)
def test_an_edit_does_not_write_into_its_inputs(data: st.DataObject, problem: Problem, seeds: Seeds) -> None:
    m = data.draw(mask_for(problem))
    z_before, m_before = problem.z_init.clone(), m.clone()
    problem.edit([m] * len(problem.trajectory()), seeds)
    assert torch.equal(problem.z_init, z_before)
    assert torch.equal(m, m_before)
