"""Dropping candidates on the way: what it saves, and that it changes none of those that are left."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bld import Editor, EditResult
from bld.apps.record import Inputs, record
from bld.errors import InvalidInput
from bld.evaluation.meter import denoiser, metered
from bld.masks import FloatArray
from bld.options import PRESETS, EditOptions, LoadOptions, preset
from bld.sample import batches, passes, rounds
from bld.task import check
from tests.tiny import FAMILIES, TINY_SIZE, GaussianModel

PHOTO = np.random.default_rng(0).integers(0, 256, (TINY_SIZE, TINY_SIZE, 3)).astype(np.uint8)
MASK = np.zeros((TINY_SIZE, TINY_SIZE), bool)
MASK[16:48, 8:40] = True


class Reddest:
    """A ranker that likes red, and keeps count of what it was shown."""

    name, revision = "reddest", "1"

    def __init__(self) -> None:
        self.shown = 0

    def score(self, picture: FloatArray, prompt: str) -> float:
        self.shown += 1
        return float(picture[..., 0].mean())


def edit(editor: Editor, **options: Any) -> EditResult:
    asked = {"seed": 7, "steps": 10, "rank_by": "masked", "batch_size": 3, **options}
    return editor.edit(PHOTO, MASK, "a red wall", **asked)


# --- the plan ---


@given(st.integers(1, 60), st.integers(1, 64), st.integers(1, 64) | st.none())
@example(2, 8, 2)
def test_a_plan_goes_through_all_steps_and_ends_with_the_finalists(
    steps: int, candidates: int, finalists: int | None
) -> None:
    plan = rounds(steps, candidates, finalists)
    assert [r.first for r in plan] == [0, *(r.last for r in plan[:-1])]
    assert plan[-1].last == steps
    assert [r.candidates for r in plan] == [candidates, *(r.kept for r in plan[:-1])]
    assert all(r.first < r.last for r in plan)
    assert all(r.kept <= r.candidates for r in plan)
    if steps > 1:
        assert plan[-1].kept == min(candidates, finalists or candidates)


def test_halving_saves_at_least_two_fifths_of_the_evaluations_of_24_candidates() -> None:
    for steps in (12, 15, 20, 50):
        taken = sum((r.last - r.first) * r.candidates for r in rounds(steps, 24, 4))
        assert taken <= 0.6 * 24 * steps


@given(st.integers(1, 64), st.integers(1, 16))
def test_micro_batches_hold_every_candidate_once(candidates: int, most: int) -> None:
    found = [i for batch in batches(candidates, most) for i in range(batch.start, batch.stop)]
    assert found == list(range(candidates))
    assert passes(rounds(5, candidates, None), most) == 5 * len(batches(candidates, most))


@pytest.mark.parametrize(("side", "together"), [(64, 16), (256, 16), (384, 7), (512, 4), (1024, 4)])
def test_small_pictures_are_denoised_more_at_a_time(side: int, together: int) -> None:
    model = GaussianModel()
    model.native_size = side  # and the photograph's
    photo, mask = np.zeros((side, side, 3), np.uint8), np.ones((side, side), bool)
    assert check(model, photo, mask, "a red wall", EditOptions()).batch_size == together
    assert check(model, photo, mask, "a red wall", EditOptions(batch_size=3)).batch_size == 3


# --- the candidates ---


@pytest.mark.parametrize("family", FAMILIES)
def test_a_finalist_is_the_same_picture_as_without_dropping(family: Any) -> None:
    """To the bit, for each step's noise is its own, and a solver's memory goes with its candidate."""
    whole = edit(Editor(GaussianModel(family), Reddest()), candidates=9)
    halved = edit(Editor(GaussianModel(family), Reddest()), candidates=9, finalists=2)
    made = {c.seed: c.photograph.pixels for c in whole.candidates}
    assert len(halved.candidates) == 2
    for candidate in halved.candidates:
        np.testing.assert_array_equal(candidate.photograph.pixels, made[candidate.seed])
    for seed, z in zip(halved.latents.seeds, halved.latents.z_0, strict=True):
        assert torch.equal(z, whole.latents.z_0[whole.latents.seeds.index(seed)])
    assert {c.seed for c in halved.candidates} | {d.seed for d in halved.dropped} == set(range(7, 16))


def test_whoever_was_dropped_scored_less_and_is_told() -> None:
    ranker = Reddest()
    result = edit(Editor(GaussianModel(), ranker), candidates=8, finalists=2)
    assert [d.step for d in result.dropped] == [2] * 4 + [5] * 2
    first, second = ([d.score for d in result.dropped if d.step == step] for step in (2, 5))
    assert first == sorted(first, reverse=True)
    assert second == sorted(second, reverse=True)
    assert ranker.shown == 8 + 4 + 2, "each candidate in work, at each look, and the finalists at the end"
    assert "6 of 8 candidates were dropped on the way" in result.notes
    facts = record(result, Inputs(__file__, __file__, LoadOptions(), "reddest"))
    assert [one["seed"] for one in facts["dropped"]] == [d.seed for d in result.dropped]
    assert facts["request"]["candidates"] == 8


def test_the_best_alone_are_reconstructed_where_no_more_are_wanted() -> None:
    stages = set[tuple[str, int]]()
    whole = edit(Editor(GaussianModel(), Reddest()), candidates=5)
    some = edit(
        Editor(GaussianModel(), Reddest()), candidates=5, best=2,
        progress=lambda stage, done, total: stages.add((stage, total)),
    )  # fmt: skip
    assert {total for stage, total in stages if stage == "reconstruct"} == {2}
    assert some.latents.seeds == whole.latents.seeds[:2]
    for one, other in zip(some.candidates, whole.candidates[:2], strict=True):
        assert (one.seed, one.score) == (other.seed, other.score)
        np.testing.assert_array_equal(one.photograph.pixels, other.photograph.pixels)
    with pytest.raises(InvalidInput, match="best is 0"):
        edit(Editor(GaussianModel()), best=0)


def test_without_a_ranker_all_are_finished() -> None:
    result = edit(Editor(GaussianModel()), candidates=5, finalists=2)
    assert (len(result.candidates), result.dropped) == (5, ())


def test_what_the_fast_preset_runs_for_24_candidates(tiny_editor: Editor) -> None:
    """A tenth of the passes of the UNet that 50 guided steps take; everything else as seldom as can be."""
    editor, ran = Editor(tiny_editor.model, Reddest()), Counter[str]()
    parts = {
        "encoder": editor.model.vae.encoder, "decoder": editor.model.vae.decoder,
        "text encoder": editor.model.text_encoder,
    }  # fmt: skip
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: ran.update([name]))
        for name, part in parts.items()
    ]
    asked = preset("fast", candidates=24, seed=0, negative_prompt="a blue wall")  # prompts of no other test
    with metered(denoiser(editor.model)) as cost:
        result = editor.edit(PHOTO, MASK, "a green wall", options=asked)
    for hook in hooks:
        hook.remove()
    assert len(result.candidates) == PRESETS["fast"]["finalists"]
    assert cost.evaluations <= 2 * PRESETS["paper"]["steps"] * 24 / 10
    assert ran["encoder"] == 1
    assert ran["text encoder"] == 2, "the prompt, and what it leads away from"
    looked_at = 24 + math.ceil(math.sqrt(24 * 4))  # at the two looks
    assert ran["decoder"] == looked_at + len(result.candidates) + 1, "and the photograph's round trip"


def test_evaluations_and_memory_of_24_candidates(tiny_editor: Editor) -> None:
    """Counted on the network: what dropping saves, and that no batch grows with the candidates."""
    editor = Editor(tiny_editor.model, Reddest())

    def counted(**options: Any) -> tuple[int, int]:
        with metered(denoiser(editor.model)) as cost:
            edit(editor, steps=6, **options)
        return cost.evaluations, cost.widest

    whole, halved, few = counted(candidates=24), counted(candidates=24, finalists=4), counted(candidates=4)
    assert whole[0] == 2 * 6 * 24
    assert halved[0] <= 0.6 * whole[0]
    assert whole[1] == halved[1] == few[1]
