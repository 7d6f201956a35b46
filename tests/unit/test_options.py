"""Options: what an edit may be asked for, and how a wrong request is answered."""

import dataclasses
import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bld.errors import BldError, InvalidInput
from bld.options import (
    BATCH,
    FIELDS,
    MAX_SEED,
    PRESETS,
    BatchOptions,
    EditOptions,
    LoadOptions,
    Preset,
    either,
    flag,
    preset,
    resolve,
)

RANGED = {
    name: (option.metadata["low"], option.metadata["high"])
    for name, option in FIELDS.items()
    if option.metadata["low"] is not None
}
WHOLE = [
    "candidates", "finalists", "seed", "steps", "feather", "context_pixels", "max_pixels", "batch_size",
    "tune_candidates", "tune_steps", "tune_blocks",
]  # fmt: skip
REAL = [
    "strength",
    "guidance_scale",
    "guidance_start",
    "guidance_end",
    "context",
    "tune_lr",
    "tune_weight",
    "tune_psnr",
]
SWITCHES = [
    "exact", "shrink", "soft_mask", "invert_mask", "resize_mask", "truncate_prompt", "tune_foreground",
]  # fmt: skip
TEXTS = ["negative_prompt", "scheduler", "reconstruct", "mask_mode", "tune_loss", "tuner", "rank_by"]
# None means "choose for me".
OPEN = [
    "finalists", "seed", "steps", "guidance_scale", "feather", "shrink", "soft_mask", "batch_size",
]  # fmt: skip


def refused(**option: Any) -> str:
    """The message that refuses one option."""
    with pytest.raises(InvalidInput) as caught:
        EditOptions(**option)
    return str(caught.value)


def test_every_option_is_tested_here() -> None:
    assert set(FIELDS) == {*WHOLE, *REAL, *SWITCHES, *TEXTS}
    assert set(RANGED) == {*WHOLE, *REAL}


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_has_a_help_text(name: str) -> None:
    text = FIELDS[name].metadata["help"]
    assert text
    assert not text.endswith(".")


# --- ranges ---


@pytest.mark.parametrize("name", RANGED)
def test_a_range_includes_its_ends(name: str) -> None:
    for end in RANGED[name]:
        if end is not None:
            assert getattr(EditOptions(**{name: end}), name) == end


@pytest.mark.parametrize("name", RANGED)
def test_what_is_out_of_range_is_refused_with_flag_value_and_range(name: str) -> None:
    low, high = RANGED[name]
    step = 1 if name in WHOLE else 0.001
    for value in [low - step] + ([] if high is None else [high + step]):
        message = refused(**{name: value})
        assert message.startswith(f"{flag(name)} {value}: ")
        assert f"at least {low}" in message if high is None else f"from {low} to {high}" in message


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    assert flag(name) in refused(**{name: value})


@given(st.sampled_from(sorted(RANGED)), st.integers() | st.floats())
def test_a_number_is_taken_exactly_if_it_is_in_range(name: str, value: float) -> None:
    low, high = RANGED[name]
    fits = low <= value <= (math.inf if high is None else high)
    if fits and (name in REAL or isinstance(value, int)):
        assert getattr(EditOptions(**{name: value}), name) == value
    else:
        message = refused(**{name: value})
        assert flag(name) in message
        assert "\n" not in message


@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["huge", "hugely negative"])
@pytest.mark.parametrize("name", RANGED)
def test_a_number_that_no_float_holds_is_refused_or_counted(name: str, value: int) -> None:
    if RANGED[name][1] is None and value > 0:
        assert getattr(EditOptions(**{name: value}), name) == value
    else:
        assert flag(name) in refused(**{name: value})


def test_guidance_ends_where_it_starts_or_later() -> None:
    assert EditOptions(guidance_start=0.3, guidance_end=0.3).guidance_end == 0.3
    assert "--guidance-start 0.5 is after --guidance-end 0.4" in refused(guidance_start=0.5, guidance_end=0.4)


# --- types ---


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [2.5, 4.0, "4", True, [4]], ids=repr)
def test_a_whole_number_takes_nothing_else(name: str, value: Any) -> None:
    message = refused(**{name: value})
    assert flag(name) in message
    assert "whole number" in message


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("value", ["1", True, [1.0]], ids=repr)
def test_a_number_takes_nothing_else(name: str, value: Any) -> None:
    message = refused(**{name: value})
    assert flag(name) in message
    assert "number" in message


@pytest.mark.parametrize("name", REAL)
def test_a_number_may_be_whole(name: str) -> None:
    assert getattr(EditOptions(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [1, 0.0, "no"], ids=repr)
def test_a_switch_is_true_or_false(name: str, value: Any) -> None:
    """The text "no" would count as true."""
    assert flag(name) in refused(**{name: value})


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [5, True, None, ["stitch"]], ids=repr)
def test_a_text_is_text(name: str, value: Any) -> None:
    assert flag(name) in refused(**{name: value})


@pytest.mark.parametrize("name", ["scheduler", "reconstruct", "mask_mode", "tune_loss", "tuner", "rank_by"])
def test_a_choice_is_one_of_those_in_the_message(name: str) -> None:
    message = refused(**{name: "watercolour"})
    assert message.startswith(f"{flag(name)} watercolour: ")
    for choice in message.partition("choose one of ")[2].split(", "):
        assert getattr(EditOptions(**{name: choice}), name) == choice


@pytest.mark.parametrize("name", FIELDS)
def test_only_an_open_option_may_be_left_to_the_edit(name: str) -> None:
    if name in OPEN:
        assert getattr(EditOptions(**{name: None}), name) is None
    else:
        assert flag(name) in refused(**{name: None})


# --- the object ---


def test_the_defaults_are_a_good_request() -> None:
    options = EditOptions()
    assert [name for name in FIELDS if getattr(options, name) is None] == OPEN


def test_options_are_frozen_and_given_by_name() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EditOptions().steps = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        EditOptions(4)  # type: ignore[misc]
    with pytest.raises(InvalidInput):
        dataclasses.replace(EditOptions(), steps=0)


def test_an_error_can_be_caught_as_what_it_is() -> None:
    for kind in (InvalidInput, ValueError, BldError):
        with pytest.raises(kind):
            EditOptions(candidates=0)


def test_a_flag_is_spelt_as_on_the_command_line() -> None:
    assert flag("guidance_scale") == "--guidance-scale"
    assert "--context-pixels" in refused(context_pixels=-1)


# --- presets ---


def test_presets_are_those_that_the_type_names() -> None:
    assert set(PRESETS) == set(get_args(Preset))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_values_and_leaves_the_rest(name: Preset) -> None:
    changed = dataclasses.asdict(EditOptions()) | PRESETS[name]
    assert dataclasses.asdict(preset(name)) == changed


def test_the_paper_preset_is_the_papers() -> None:
    options = preset("paper")
    assert (options.steps, options.guidance_scale, options.candidates) == (50, 5.0, 24)


def test_an_explicit_value_wins_over_the_preset() -> None:
    options = preset("fast", steps=7, seed=3)
    assert (options.steps, options.seed, options.candidates) == (7, 3, PRESETS["fast"]["candidates"])
    with pytest.raises(InvalidInput, match=r"--steps 0"):
        preset("fast", steps=0)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"--preset slow: choose one of paper, fast"):
        preset("slow")  # type: ignore[arg-type]


# --- resolving ---


def test_resolving_fills_in_what_was_left_open() -> None:
    options = resolve(
        EditOptions(seed=9), steps=50, guidance_scale=4.5, shrink=True, soft_mask=False, feather=6
    )
    assert options == EditOptions(
        finalists=EditOptions.candidates, batch_size=4, seed=9, steps=50, guidance_scale=4.5, shrink=True,
        soft_mask=False, feather=6,
    )  # fmt: skip


def test_resolving_keeps_explicit_choices_even_falsy_ones() -> None:
    asked = EditOptions(
        finalists=1, batch_size=2, seed=0, steps=7, guidance_scale=1, shrink=False, soft_mask=False, feather=0
    )
    assert resolve(asked, steps=50, guidance_scale=4.5, shrink=True, soft_mask=True, feather=6) == asked


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(EditOptions(), steps=50, guidance_scale=4.5, shrink=True, soft_mask=False, feather=6)
    assert resolve(once, steps=4, guidance_scale=1, shrink=False, soft_mask=False, feather=0) == once
    assert None not in dataclasses.asdict(once).values()


def test_a_seed_is_drawn_if_none_came() -> None:
    def drawn() -> int:
        seed = resolve(
            EditOptions(), steps=50, guidance_scale=1, shrink=False, soft_mask=False, feather=0
        ).seed
        assert seed is not None
        assert 0 <= seed < 2**31
        return seed

    assert len({drawn() for _ in range(8)}) > 1  # all alike: once in 2^217


def test_the_last_candidates_seed_is_still_one() -> None:
    """Seeds count up from the first; the largest that a generator takes is MAX_SEED."""
    seed_high, candidates_high = RANGED["seed"][1], RANGED["candidates"][1]
    assert seed_high + candidates_high - 1 <= MAX_SEED


@pytest.mark.parametrize("name", ["lora", "textual_inversion"])
def test_what_may_come_several_times_is_a_list(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{flag(name)} 'x.safetensors': expected a list"):
        LoadOptions(**{name: "x.safetensors"})  # type: ignore[arg-type]


def test_options_come_as_one_object_or_one_by_one() -> None:
    assert either(LoadOptions, None, {"device": "cpu"}) == LoadOptions(device="cpu")
    assert either(LoadOptions, LoadOptions(device="cpu"), {}) == LoadOptions(device="cpu")
    with pytest.raises(TypeError, match=r"options=LoadOptions\(...\) or single options, not both"):
        either(LoadOptions, LoadOptions(device="cpu"), {"device": "cuda"})


# --- of a batch ---


def test_a_batch_has_its_own_options() -> None:
    assert set(BATCH).isdisjoint(FIELDS)
    for option in BATCH.values():
        assert option.metadata["help"]
    assert BatchOptions(allow_host=["example.org"]).allow_host == ("example.org",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "option",
    [{"workers": 0}, {"threads": 2.5}, {"retries": -1}, {"gpus_per_worker": -0.5}, {"limit": 0}],
    ids=str,
)
def test_a_batch_refuses_what_is_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=flag(next(iter(option)))):
        BatchOptions(**option)
