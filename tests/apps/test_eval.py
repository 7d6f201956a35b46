"""`bld eval`: a suite built, run by several methods, stopped, gone on with, and reported."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bld.baselines import entrants
from tests.apps.conftest import Run
from tests.apps.servers import Running, running
from tests.baselines import tiny_baselines

FEW = ("--candidates", "2", "--steps", "2")


@pytest.fixture
def suite(tmp_path: Path, bld: Run) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    labels = tmp_path / "labels.txt"
    labels.write_text("owl\tan owl\nguitar\ta guitar\n")
    code, out, _ = bld("eval", "build", folder, "--labels", labels, "--output", tmp_path / "suite")
    assert (code, out.split()[-2:]) == (0, ["3", "cases"])
    return tmp_path / "suite"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def test_a_run_its_report_and_going_on(
    suite: Path, tmp_path: Path, bld: Run, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    asked = ("eval", "run", "--suite", suite, "--output", tmp_path / "run", *FEW)
    methods = f"bld,served=remote:{server.url}/v1"
    assert bld(*asked, "--methods", methods)[0] == 0
    run = tmp_path / "run"
    text = (run / "report.md").read_text()
    assert "| bld | 2 |" in text
    assert "| served | 2 |" in text
    assert "3 cases of suite; classifier mini/judge" in text
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    shutil.rmtree(run / "bld" / "001")
    (run / "bld" / "001.json").unlink()
    (run / "report.html").unlink()
    assert bld(*asked, "--methods", methods)[0] == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    (run / "report.md").unlink()
    assert bld("eval", "report", run)[0] == 0
    assert (run / "report.md").read_text() == text


def test_every_system_of_the_paper_enters(
    suite: Path, tmp_path: Path, bld: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our editor and all baselines, tiny ones, in one table; then the ranking's."""
    monkeypatch.setattr(entrants, "BUNDLED", tiny_baselines(tmp_path / "tiny"))
    few = ("--cases", "1", "--candidates", "2", "--steps", "2", "--baseline-steps", "2")
    asked = ("eval", "run", "--suite", suite, "--output", tmp_path / "run", "--methods", "all", *few)
    assert bld(*asked)[0] == 0
    lines = (tmp_path / "run/report.md").read_text().splitlines()
    found = [line.split(" | ")[:2] for line in lines if line.startswith("| ")][1:7]
    names = ["bld", "blended-diffusion", "local-clip", "paintbyword", "glide-filtered", "glide-masked"]
    assert [name.removeprefix("| ") for name, _ in found] == names
    assert [count for _, count in found] == ["2", "2", "2", "1", "2", "2"]
    with Image.open(tmp_path / "run/report.png") as sheet:  # a row for the photograph and for each
        assert sheet.size == (4 + 132, 4 + 7 * (96 + 16 + 4))
    code, out, _ = bld("eval", "ranking", tmp_path / "run", "--method", "glide-filtered")
    assert code == 0
    assert [line.split(" | ")[0] for line in out.splitlines()[2:]] == [
        f"| {name}" for name in names if name != "paintbyword"
    ]
    with Image.open(tmp_path / "run/ranking.png") as sheet:
        assert sheet.width > 2 * 128
    code, _, err = bld("eval", "ranking", tmp_path / "run", "--method", "magic")
    assert (code, "--method magic" in err) == (2, True)
    assert bld(*asked[:-2], "--baseline-steps", "3")[0] == 2, "rows of other settings do not mix"


def test_a_damaged_baseline_is_one_line(
    suite: Path, tmp_path: Path, bld: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrants, "BUNDLED", tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"nothing")
    for words, says in (
        (("glide-masked",), "make them with bld train glide"),
        ((f"blended-diffusion:{tmp_path}/nowhere.pt",), "no such file"),
        ((f"paintbyword:{tmp_path}/weights.pt",), "--allow-pickle"),
        ((f"paintbyword:{tmp_path}/weights.pt", "--allow-pickle"), "cannot read it"),
        ((f"glide-masked:{tmp_path}",), "cannot load its tokenizer"),
    ):
        code, _, err = bld("eval", "run", "--suite", suite, "--output", tmp_path / "run", "--methods", *words)
        assert (code, says in err, err.count("\n")) == (2, True, 1), err


def test_finished_pictures_enter_too(suite: Path, tmp_path: Path, bld: Run) -> None:
    cases = json.loads((suite / "suite.json").read_text())["cases"]
    for case in cases:
        (tmp_path / "mine" / f"{case['number']:03d}").mkdir(parents=True)
        shutil.copy(suite / case["photograph"], tmp_path / "mine" / f"{case['number']:03d}" / "00.png")
    entered = f"untouched=folder:{tmp_path / 'mine'}"
    asked = ("eval", "run", "--suite", suite, "--output", tmp_path / "run", "--methods", entered)
    assert bld(*asked)[0] == 0
    (line,) = [line for line in (tmp_path / "run/report.md").read_text().splitlines() if "untouched" in line]
    assert "exact" in line
    assert bld(*asked, "--device", "cpu")[0] == 0, "what only changes the time may differ"
    code, _, err = bld(*asked, "--dtype", "bfloat16")
    assert (code, err.count("\n")) == (2, 1)
    assert "was begun with dtype 'auto on cpu', not 'bfloat16'" in err
    labels = tmp_path / "labels.txt"
    build = ("eval", "build", tmp_path / "photographs", "--labels", labels, "--output", suite)
    assert bld(*build, "--seed", 1)[0] == 0
    code, _, err = bld(*asked)
    assert (code, "was begun with suite_revision" in err) == (2, True)


def test_a_report_is_of_the_methods_that_are_done(suite: Path, tmp_path: Path, bld: Run) -> None:
    """One that another process is at, or that was given up, is named and in nobody's way."""
    cases = json.loads((suite / "suite.json").read_text())["cases"]
    for name, count in (("done", 3), ("half", 2)):
        for case in cases[:count]:
            (tmp_path / name / f"{case['number']:03d}").mkdir(parents=True)
            shutil.copy(suite / case["photograph"], tmp_path / name / f"{case['number']:03d}" / "00.png")
    run = tmp_path / "run"
    asked = ("eval", "run", "--suite", suite, "--output", run, "--methods")
    assert bld(*asked, f"half=folder:{tmp_path / 'half'}")[0] == 2, "its third case has no picture"
    code, _, err = bld("eval", "report", run)
    assert (code, "no method has the rows of all 3 cases" in err) == (2, True)
    says = "note: not in the report, for want of rows: half"
    code, out, _ = bld(*asked, f"done=folder:{tmp_path / 'done'}")
    assert (code, out.splitlines()) == (0, [says])
    text = (run / "report.md").read_text()
    assert "| done | 1 |" in text
    assert "half" not in text
    code, out, _ = bld("eval", "report", run)
    assert (code, out.splitlines()) == (0, [says, str(run / "report.md")])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--methods", "magic"), "expected all, bld, blended-diffusion"),
        (("--methods", "../x=bld"), "a name has letters"),
        (("--cases", "9"), "suite has 1 to 3"),
        (("--lpips", "a"), "AlexNet's checkpoint"),
        (("--classifier", "nowhere"), "unknown model nowhere"),
    ],
)
def test_bad_words_are_one_line(
    suite: Path, tmp_path: Path, bld: Run, words: tuple[str, ...], says: str
) -> None:
    code, _, err = bld("eval", "run", "--suite", suite, "--output", tmp_path / "run", *words)
    assert code == 2
    assert says in err


def test_a_classifier_without_a_class_of_the_suite_begins_nothing(
    suite: Path, tmp_path: Path, bld: Run
) -> None:
    manifest = suite / "suite.json"
    manifest.write_text(manifest.read_text().replace('"owl"', '"quark"'))
    for command in (("eval", "run"), ("bench", "--cases", 3)):
        code, _, err = bld(*command, "--suite", suite, "--output", tmp_path / "run")
        assert (code, "no label 'quark'" in err, err.count("\n")) == (2, True, 1), err
    assert not (tmp_path / "run").exists()


def test_times(suite: Path, bld: Run, model: Path) -> None:
    words = (
        "--suite",
        suite,
        "--model",
        model,
        "--repeats",
        "1",
        "--candidates",
        "2",
        "--ways",
        "none,stitch",
    )
    code, out, _ = bld("eval", "time", *words)
    assert code == 0
    assert "| bld | stitch | 2 |" in out
    assert "| method | parameters, M |" in out
    assert "| Blended latent diffusion | 24 | 6 | 53 | 25 and 72 | 1450 | 150 |" in out
    assert "| PaintByWord++ | 1 | 78 | - | - | 90 | 150 |" in out
    code, _, err = bld("eval", "time", *words, "--methods", "blended-diffusion")
    assert (code, "name it with --ranker" in err) == (2, True), "the tiny model has no CLIP"
    code, _, err = bld("eval", "time", *words, "--methods", "folder:x")
    assert (code, "what can be timed" in err) == (2, True)


def test_baselines_are_timed_too(suite: Path, tmp_path: Path, bld: Run) -> None:
    tiny = tiny_baselines(tmp_path / "tiny")
    words = ("--suite", suite, "--repeats", "1", "--candidates", "2")
    code, out, _ = bld("eval", "time", *words, "--methods", f"glide-filtered:{tiny / 'glide'}")
    assert code == 0
    assert [line.rsplit(" | ", 1)[0] for line in out.splitlines() if "glide" in line][:2] == [
        "| glide-filtered | stitch | 1", "| glide-filtered | stitch | 2",
    ]  # fmt: skip


def test_bench_measures_the_systems_that_were_named(
    suite: Path, model: Path, tmp_path: Path, bld: Run
) -> None:
    asked = ("bench", "--suite", suite, "--model", model, "--cases", 0, "--repeats", 1, "--candidates", 2)
    asked = (*asked, "--steps", 2, "--no-reconstruct", "--output", tmp_path / "bench")
    code, out, _ = bld(*asked, "--systems", "plain,floor")
    assert code == 0
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:]] == ["floor", "plain"]
    assert {entry["evaluations"] for entry in json.loads((tmp_path / "bench/bench.json").read_text())} == {8}
    code, _, err = bld(*asked, "--systems", "plain,fastest")
    assert (code, err.count("\n")) == (2, 1)
    assert "known are diffusers, plain, ours-paper, ours-fast, floor" in err
    code, _, err = bld(*asked, "--candidates", 3)
    assert code == 2
    assert "was begun with candidates 2, not 3" in err
    code, _, err = bld(*asked, "--systems", "plain", "--dtype", "bfloat16")
    assert code == 2
    assert "was begun with dtype 'auto', not 'bfloat16'" in err
