"""`bld bench`: what it counts, and that rivals are what they are called."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bld import EditOptions, Editor, InvalidInput
from bld.classify import load_classifier
from bld.evaluation import bench
from bld.evaluation.distance import ClassifierDistance
from bld.evaluation.meter import autoencoder, denoiser, metered
from bld.evaluation.methods import Method
from bld.evaluation.rivals import PlainLoop
from bld.evaluation.run import Judges
from bld.evaluation.suite import Suite, build
from bld.images import Photograph
from bld.models.unet import UNetModel
from bld.options import LoadOptions
from bld.rank import load_ranker

CANDIDATES, STEPS = 3, 4


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """One photograph of the tiny model's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("suite")
    return build([("noise", Photograph(pixels))], [("apple", "a red apple")], folder, name="one")


@pytest.fixture
def entered(tiny_editor: Editor) -> bench.Entered:
    return bench.systems(tiny_editor, candidates=CANDIDATES, steps=STEPS, tuned=False)


def evaluations(editor: Editor, method: Method, suite: Suite) -> int:
    case = suite.cases[0]
    photograph = suite.open(case)
    with metered(denoiser(editor.model)) as cost:
        method.edit(photograph, case.mask(photograph.size), case)
    return cost.evaluations


@pytest.mark.parametrize("name", ["diffusers", "plain", "ours-paper"])
def test_a_whole_trajectory_takes_two_evaluations_a_step_and_candidate(
    tiny_editor: Editor, entered: bench.Entered, suite: Suite, name: str
) -> None:
    assert evaluations(tiny_editor, entered[name], suite) == 2 * CANDIDATES * STEPS


def test_the_floor_runs_the_passes_of_the_paper_preset_and_nothing_else(
    tiny_editor: Editor, entered: bench.Entered, suite: Suite
) -> None:
    case, seen = suite.cases[0], []
    photograph = suite.open(case)
    entered["floor"].edit(photograph, case.mask(photograph.size), case)
    vae = tiny_editor.model.vae.decoder.register_forward_pre_hook(lambda *_: seen.append("decoder"))
    assert evaluations(tiny_editor, entered["floor"], suite) == 2 * CANDIDATES * STEPS
    vae.remove()
    assert seen == []


def test_the_plain_loop_draws_what_ours_draws(
    tiny_model: UNetModel, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ways to write Algorithm 1, on the same noise: the same pictures."""
    monkeypatch.setattr(tiny_model, "whole", True)  # each scales the mask of a crop in its own way
    case, options = suite.cases[0], EditOptions(candidates=2, steps=5, guidance_scale=5)
    photograph = suite.open(case)
    mask = case.mask(photograph.size)
    plain = PlainLoop(tiny_model, None, options, tuned=False).edit(photograph, mask, case)
    ours = Editor(tiny_model).edit(
        photograph, mask, case.prompt, candidates=2, steps=5, guidance_scale=5, seed=case.seed,
        reconstruct="none", shrink=False,
    )  # fmt: skip
    for theirs, candidate in zip(plain, ours.candidates, strict=True):
        # Their levels are float32, ours double: one level of 255 after rounding.
        assert np.abs(theirs.astype(int) - candidate.photograph.pixels).max() <= 1


def test_a_rivals_pictures_are_of_8_bits_whatever_the_photograph(tiny_model: UNetModel, suite: Suite) -> None:
    case, options = suite.cases[0], EditOptions(candidates=1, steps=1, guidance_scale=5)
    photograph, rival = suite.open(case), PlainLoop(tiny_model, None, options, tuned=False)
    deep = Photograph(photograph.pixels.astype(np.uint16) * 257)
    mask = case.mask(photograph.size)
    shallow, (found,) = rival.edit(photograph, mask, case)[0], rival.edit(deep, mask, case)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - shallow).max() <= 1


@pytest.mark.parametrize("name", ["diffusers", "plain"])
def test_rivals_compute_in_the_models_precision(tiny: Path, suite: Suite, name: str) -> None:
    editor = Editor.from_pretrained(str(tiny), device="cpu", dtype="bfloat16")
    entered = bench.systems(editor, candidates=2, steps=2, tuned=True)
    assert evaluations(editor, entered[name], suite) == 2 * 2 * 2


def test_the_peak_counts_what_was_freed_again() -> None:
    with metered(torch.nn.Identity()) as cost:
        torch.ones(40_000_000).sum()
    if cost.megabytes is not None:
        assert 150 < cost.megabytes < 250


def test_seconds_inside_are_those_of_the_networks() -> None:
    class Nap(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return x

    one, other = Nap(), Nap()
    with metered(one, other) as cost:
        other(one(torch.ones(1)))
        time.sleep(0.1)
    assert 0.1 <= cost.inside <= cost.seconds - 0.1
    with metered(one) as cost:
        other(torch.ones(1))
    assert cost.inside == 0


def test_little_goes_on_beside_the_networks() -> None:
    """Of 24 candidates and the paper's 50 steps a few percent; of 4 and 4 a quarter at most."""
    editor, case = Editor.from_pretrained("mini"), np.random.default_rng(0)
    photograph = case.integers(0, 256, (256, 256, 3)).astype(np.uint8)
    mask = np.zeros((256, 256), np.float32)
    mask[70:180, 80:200] = 1
    with metered(denoiser(editor.model), *autoencoder(editor.model)) as cost:
        editor.edit(photograph, mask, "a star", seed=1, steps=4, candidates=4)
    assert cost.seconds < 1.25 * cost.inside


def test_systems_of_other_loading_do_not_go_into_one_folder(
    tiny_editor: Editor, suite: Suite, tmp_path: Path
) -> None:
    judge = load_classifier("auto")
    for _ in range(2):
        bench.begin(tmp_path, tiny_editor, suite, judge, LoadOptions(), candidates=3)
    with pytest.raises(InvalidInput, match="begun with dtype 'auto', not 'bfloat16'"):
        bench.begin(tmp_path, tiny_editor, suite, judge, LoadOptions(dtype="bfloat16"), candidates=3)
    other = replace(suite, cases=(replace(suite.cases[0], label="owl"),))
    with pytest.raises(InvalidInput, match="begun with suite_revision"):
        bench.begin(tmp_path, tiny_editor, other, judge, LoadOptions(), candidates=3)


def test_rows_of_another_system_do_not_go_under_its_name(
    tiny_editor: Editor, entered: bench.Entered, suite: Suite, tmp_path: Path
) -> None:
    bench.run(tiny_editor, entered, suite, None, tmp_path, repeats=0)
    tuned = bench.systems(tiny_editor, candidates=CANDIDATES, steps=STEPS, tuned=True)
    with pytest.raises(InvalidInput, match="plain was begun with tuned False, not True"):
        bench.run(tiny_editor, {"plain": tuned["plain"]}, suite, None, tmp_path, repeats=0)


def test_the_batch_that_is_judged_is_counted(tiny_model: UNetModel, suite: Suite, tmp_path: Path) -> None:
    """A preset that drops candidates is judged on those that it finished."""
    judge, owl = load_classifier("auto"), replace(suite, cases=(replace(suite.cases[0], label="owl"),))
    editor = Editor(tiny_model, load_ranker("auto", "mini", device="cpu"))
    every = bench.systems(editor, candidates=6, steps=STEPS, tuned=False)
    judged = {name: every[name] for name in ("ours-paper", "ours-fast")}
    bench.run(editor, judged, owl, Judges(judge, ClassifierDistance(judge)), tmp_path, repeats=0)
    lines = bench.write(tmp_path).splitlines()
    place = lines[0].split(" | ").index("pictures judged a case")
    assert {line.split(" | ")[0]: line.split(" | ")[place] for line in lines[2:]} == {
        "| ours-fast": "4", "| ours-paper": "6",
    }  # fmt: skip
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {entry["system"]: entry["pictures"] for entry in found} == {"ours-fast": 4, "ours-paper": 6}


def test_systems_are_judged_on_the_cases_that_all_have(tmp_path: Path) -> None:
    for name, cases in (("plain", (0, 1, 2)), ("ours-fast", (1,))):
        for case in cases:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"case-{case:03d}.json").write_text(
                json.dumps({"case": case, "seconds": case})
            )
    one = [{"case": 1, "seconds": 1}]
    assert bench.judged(tmp_path) == {"plain": one, "ours-fast": one}
    assert bench.judged(tmp_path / "nowhere") == {}


def test_rows_are_made_once_and_add_up(
    tiny_editor: Editor, entered: bench.Entered, suite: Suite, tmp_path: Path
) -> None:
    bench.run(tiny_editor, entered, suite, None, tmp_path, repeats=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("time-*.json")}
    assert len(before) == 2 * len(entered)
    (tmp_path / "plain" / "time-01.json").unlink()
    bench.run(tiny_editor, entered, suite, None, tmp_path, repeats=2)
    assert before.keys() == {*tmp_path.rglob("time-*.json")}
    kept = [path for path in before if path.parts[-2:] != ("plain", "time-01.json")]
    assert all(path.read_bytes() == before[path] for path in kept)
    found = {entry["system"]: entry for entry in bench.summary(tmp_path)}
    assert found["plain"]["evaluations"] == found["floor"]["evaluations"] == 2 * CANDIDATES * STEPS
    assert "| floor |" in bench.write(tmp_path)
