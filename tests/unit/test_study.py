"""The user study: the key and the page say the same, and votes add up as they should."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bld import InvalidInput
from bld.evaluation import study
from bld.evaluation.study import Answers, Question, analyse, attentive
from bld.evaluation.suite import Suite, build
from bld.images import Photograph, save_png

SHADES = {"bld": 40, "other": 200}


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Twelve cases, and a run in which each method gives a shade of its own."""
    grey = np.full((32, 32, 3), 128, np.uint8)
    made = build(
        ((f"p{i}", Photograph(grey)) for i in range(12)), [("owl", "an <owl>")], tmp_path / "suite", name="s"
    )
    for method, shade in SHADES.items():
        for case in made.cases:
            (tmp_path / "run" / method / f"{case.number:03d}").mkdir(parents=True)
            save_png(tmp_path / "run" / method / f"{case.number:03d}" / "00.png", grey * 0 + np.uint8(shade))
    return made


def test_every_pair_is_asked_both_ways_and_the_page_names_no_method(suite: Suite, tmp_path: Path) -> None:
    count = study.build(suite, tmp_path / "run", "bld", ["other"], tmp_path / "study", seed=1)
    key = study.read_key(tmp_path / "study")
    found = key.questions
    assert key.ours == "bld"
    assert [q.number for q in found] == list(range(count))
    checks = [q for q in found if q.check]
    pairs = sorted((q.kind, q.case) for q in found if not q.check)
    assert pairs == [(kind, case) for kind in ("quality", "text") for case in range(12)]
    assert len(checks) == 2
    assert {q.left for q in found if not q.check} == {"bld", "other"}, "sides change"
    page = (tmp_path / "study" / study.PAGE).read_text()
    assert f'study = "{key.study}"' in page
    assert "other" not in re.sub(r"data:image[^\"]*", "", page).replace("another", "")
    assert "<owl>" not in page
    assert "\\u003cowl>" in page
    assert not re.search(r"https?://", page), "it needs no other file"


@pytest.mark.parametrize(("cases", "checks"), [(4, []), (5, [9]), (9, [9, 19]), (12, [9, 19])])
def test_a_check_comes_after_every_nine_questions(
    cases: int, checks: list[int], suite: Suite, tmp_path: Path
) -> None:
    study.build(suite.first(cases), tmp_path / "run", "bld", ["other"], tmp_path / "study", seed=1)
    found = study.read_key(tmp_path / "study").questions
    assert [q.number for q in found if q.check] == checks
    assert len(found) == 2 * cases + len(checks)


def test_the_seed_alone_decides(suite: Suite, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        study.build(suite, tmp_path / "run", "bld", ["other"], tmp_path / name, seed=seed)
    first, same, another = ((tmp_path / name / study.KEY).read_text() for name in "abc")
    assert first == same != another


def test_a_method_without_pictures_is_named(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nobody has no picture"):
        study.build(suite, tmp_path / "run", "bld", ["nobody"], tmp_path / "study", seed=0)
    with pytest.raises(InvalidInput, match="not a study"):
        study.read_key(tmp_path / "study")


@pytest.mark.parametrize("others", [["bld"], ["other", "bld"], ["other", "other"]])
def test_a_method_is_compared_once_and_not_with_itself(
    others: list[str], suite: Suite, tmp_path: Path
) -> None:
    """Of one asked twice, a rater would have two votes a case."""
    with pytest.raises(InvalidInput, match="name methods beside bld, each of them once"):
        study.build(suite, tmp_path / "run", "bld", others, tmp_path / "study", seed=0)


def test_a_study_is_told_by_its_pictures_too(suite: Suite, tmp_path: Path) -> None:
    def built(name: str) -> str | None:
        study.build(suite, tmp_path / "run", "bld", ["other"], tmp_path / name, seed=1)
        return study.read_key(tmp_path / name).study

    first = built("a")
    assert built("b") == first
    save_png(tmp_path / "run/other/000/00.png", np.full((32, 32, 3), 90, np.uint8))
    assert built("a") != first
    Answers(tmp_path / "a" / study.ANSWERS)
    with pytest.raises(InvalidInput, match="has answers to the study"):
        built("a")


def test_the_last_answer_of_a_rater_counts(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "a.sqlite")
    answers.add("r", 0, "left")
    answers.add("r", 0, "right")
    answers.add("s'; DROP TABLE answers; --", 0, "equal")
    assert Answers(tmp_path / "a.sqlite").all() == [
        ("r", 0, "right"),
        ("s'; DROP TABLE answers; --", 0, "equal"),
    ]


QUESTIONS = [
    *(
        Question(case, "text", case, *(("bld", "other") if case % 2 else ("other", "bld")))
        for case in range(4)
    ),
    Question(4, "quality", 0, "noise", "photograph", "right"),
]


def side_of(question: Question, method: str) -> Any:
    return {question.left: "left", question.right: "right"}.get(method, "equal")


def votes(choices: dict[int, str]) -> list[Any]:
    """Five raters a case, as letters: o for ours, t for the other, e for equal."""
    named = {"o": "bld", "t": "other", "e": "equal"}
    return [
        (f"r{rater}", case, side_of(QUESTIONS[case], named[letter]))
        for case, letters in choices.items()
        for rater, letter in enumerate(letters)
    ]


def test_the_majority_of_a_case_decides_and_ties_are_split() -> None:
    given = votes({0: "ooott", 1: "otttt", 2: "ootte", 3: "eeeeo"})
    (verdict,) = analyse("bld", QUESTIONS, given)
    assert (verdict.ours, verdict.other_wins, verdict.ties) == (2, 1, 1)
    assert verdict.share == (2 + 0.5) / 4
    assert verdict.p == pytest.approx(stats.binomtest(2, 3).pvalue)
    low, high = verdict.interval
    assert 0 < low < verdict.share < high < 1


def test_who_fails_a_check_does_not_count() -> None:
    given = [*votes({0: "ooott"}), ("r0", 4, "left"), ("r1", 4, "right")]
    assert attentive(QUESTIONS, given) == {"r1", "r2", "r3", "r4"}
    (verdict,) = analyse("bld", QUESTIONS, given)
    assert (verdict.ours, verdict.ties) == (0, 1), "two of each are left"


@given(st.dictionaries(st.integers(0, 3), st.text("ote", min_size=1, max_size=5), min_size=1))
def test_exchanging_the_methods_exchanges_the_verdict(choices: dict[int, str]) -> None:
    swapped = {case: letters.translate(str.maketrans("ot", "to")) for case, letters in choices.items()}
    (one,), (two,) = (analyse("bld", QUESTIONS, votes(c)) for c in (choices, swapped))
    assert (one.ours, one.other_wins, one.ties) == (two.other_wins, two.ours, two.ties)
    assert one.share == pytest.approx(1 - two.share)
    assert one.p == two.p


def test_the_key_is_json(suite: Suite, tmp_path: Path) -> None:
    study.build(suite, tmp_path / "run", "bld", ["other"], tmp_path / "study", seed=0)
    assert set(json.loads((tmp_path / "study" / study.KEY).read_text())) == {"study", "ours", "questions"}
