import functools
import inspect
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bld.apps import cli, evaluate
from bld.apps.batch import command as batch
from bld.apps.flags import FINISH, GROUPS, with_edit_options
from bld.apps.record import changed_inputs, command, digest, read
from bld.models import load
from bld.options import FIELDS
from tests.apps.conftest import Run
from tests.tiny import tiny_clip


@pytest.fixture
def edit(bld: Run, model: Path, photo: Path, mask: Path, tmp_path: Path) -> Run:
    """`bld edit` with everything it needs; words given later win."""

    def run(*words: Any) -> tuple[int, str, str]:
        given = {
            "--image": photo,
            "--mask": mask,
            "--prompt": "a guitar",
            "--model": model,
            "--output": tmp_path / "out",
            "--steps": 3,
            "--candidates": 2,
        }
        return bld("edit", *(w for pair in given.items() for w in pair), *words)

    return run


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# --- what it leaves ---


def test_edit_leaves_its_folder_and_the_background_alone(
    edit: Run, photo: Path, mask: Path, tmp_path: Path
) -> None:
    code, out, _ = edit("--seed", 5)
    assert code == 0
    assert "seed 5" in out
    folder = tmp_path / "out"
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "result.png", "grid.png", "edit.json", "latents.safetensors", "candidates/00.png", "candidates/01.png"
    }  # fmt: skip
    inside = pixels(mask)[..., 0] > 0
    before, after = pixels(photo), pixels(folder / "result.png")
    assert (after[~inside] == before[~inside]).all()
    assert (after[inside] != before[inside]).any()
    facts = json.loads((folder / "edit.json").read_text())
    assert [c["seed"] for c in facts["candidates"]] == [5, 6]
    assert [c["background_max_error"] for c in facts["candidates"]] == [0, 0]
    assert set(facts["request"]) >= set(FIELDS)
    assert None not in [facts["request"][name] for name in FIELDS], "a choice was left open"
    assert set(facts["seconds"]) == {"encode", "blend", "decode", "reconstruct"}


def test_none_returns_the_decoders_picture_around_the_mask_too(
    edit: Run, photo: Path, mask: Path, tmp_path: Path
) -> None:
    edit("--reconstruct", "none")
    inside = pixels(mask)[..., 0] > 0
    assert (pixels(tmp_path / "out" / "result.png")[~inside] != pixels(photo)[~inside]).any()
    facts = json.loads((tmp_path / "out" / "edit.json").read_text())
    assert facts["candidates"][0]["background_max_error"] > 0
    assert facts["candidates"][0]["background_psnr"] > 0


def test_a_picture_tells_the_command_that_gives_the_same_bytes(edit: Run, bld: Run, tmp_path: Path) -> None:
    edit("--negative-prompt", 'it\'s "grey"', "--strength", 0.7)  # a drawn seed, awkward quotes
    code, out, _ = bld("info", tmp_path / "out" / "candidates" / "01.png")
    assert code == 0
    command = shlex.split(out.strip().splitlines()[-1])
    assert command[:2] == ["bld", "edit"]
    assert bld(*command[1:], "--output", tmp_path / "again")[0] == 0
    for name in ("result.png", "candidates/00.png", "candidates/01.png", "grid.png"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_reconstruct_gives_what_the_edit_would_have_given(edit: Run, bld: Run, tmp_path: Path) -> None:
    edit("--seed", 3, "--candidates", 3)
    out = tmp_path / "out"
    code, _, _ = bld("reconstruct", out, "--reconstruct", "decoder", "--candidates", "2,0", "--tune-steps", 4)
    assert code == 0
    facts = json.loads((out / "decoder" / "edit.json").read_text())
    assert [(c["number"], c["seed"]) for c in facts["candidates"]] == [(2, 5), (0, 3)]
    assert {c["reconstruction"] for c in facts["candidates"]} == {"decoder"}
    assert sorted(p.name for p in (out / "candidates").iterdir()) == ["00.png", "01.png", "02.png"]
    _, shown, _ = bld("info", out / "decoder" / "result.png")
    assert bld(*shlex.split(shown.strip().splitlines()[-1])[1:], "--output", tmp_path / "again")[0] == 0
    for here, there in (("00", "02"), ("01", "00")):
        np.testing.assert_array_equal(
            pixels(out / "decoder" / "candidates" / f"{here}.png"),
            pixels(tmp_path / "again" / "candidates" / f"{there}.png"),
        )


def test_a_reconstruction_can_be_reconstructed_and_still_tells_its_command(
    edit: Run, bld: Run, tmp_path: Path
) -> None:
    """Its candidates keep their places in the edit, wherever they stand in a folder."""
    edit("--seed", 3, "--candidates", 3)
    out, tuned = tmp_path / "out", ("--tune-steps", 2)
    assert bld("reconstruct", out, "--reconstruct", "decoder", "--candidates", 2, 0, *tuned)[0] == 0
    assert bld("reconstruct", out / "decoder", "--reconstruct", "latents", "--candidates", 0, *tuned)[0] == 0
    again = out / "decoder" / "latents"
    (made,) = json.loads((again / "edit.json").read_text())["candidates"]
    assert (made["number"], made["seed"]) == (2, 5)
    _, shown, _ = bld("info", again / "result.png")
    assert bld(*shlex.split(shown.strip().splitlines()[-1])[1:], "--output", tmp_path / "again")[0] == 0
    np.testing.assert_array_equal(
        pixels(again / "result.png"), pixels(tmp_path / "again" / "candidates" / "02.png")
    )


def test_visualize_shows_the_steps(bld: Run, model: Path, photo: Path, mask: Path, tmp_path: Path) -> None:
    words = [
        "--image",
        photo,
        "--mask",
        mask,
        "--prompt",
        "a guitar",
        "--model",
        model,
        "--steps",
        6,
        "--seed",
        1,
    ]
    code, out, _ = bld("visualize", *words, "--frames", 3, "--mp4", "--output", tmp_path / "p")
    assert code == 0
    assert "process.gif  seed 1" in out
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "latents.png", "process.gif", "process.json", "process.mp4", "strip.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "p" / "process.gif") as gif:
        assert gif.n_frames == 3
    assert json.loads((tmp_path / "p" / "process.json").read_text())["request"]["seed"] == 1
    for film in (False, True):  # its own goes with the other pictures, somebody else's stays
        code, _, err = bld("visualize", *words, "--frames", 2, "--output", tmp_path / "p")
        assert code == 0, err
        assert (tmp_path / "p" / "process.mp4").exists() == film
        (tmp_path / "p" / "process.mp4").write_text("mine")
    (tmp_path / "p" / "process.json").unlink()
    code, _, err = bld("visualize", *words, "--output", tmp_path / "p")
    assert code == 2
    assert "strip.png is there, but no process.json" in err
    code, _, err = bld("visualize", *words[:-4], "--steps", 0, "--output", tmp_path / "q")
    assert (code, (tmp_path / "q").exists()) == (2, False)
    assert "--steps 0" in err


def test_sensitivity_makes_one_sheet(bld: Run, model: Path, photo: Path, mask: Path, tmp_path: Path) -> None:
    words = ["--image", photo, "--mask", mask, "--prompt", "a guitar", "--model", model, "--steps", 2]
    code, out, err = bld("eval", "sensitivity", *words, "--seeds", 2, "--output", tmp_path / "s")
    assert code == 0, err
    assert "sensitivity.png  6 variants" in out
    with Image.open(tmp_path / "s" / "sensitivity.png") as sheet:
        assert sheet.width == 3 * (192 + 4) + 4
    assert json.loads((tmp_path / "s" / "sensitivity.json").read_text())["request"]["steps"] == 2
    (tmp_path / "s" / "sensitivity.json").unlink()
    code, _, err = bld("eval", "sensitivity", *words, "--seeds", 2, "--output", tmp_path / "s")
    assert code == 2
    assert "sensitivity.png is there, but no sensitivity.json" in err
    code, _, err = bld("eval", "sensitivity", *words[:-2], "--steps", 0, "--output", tmp_path / "t")
    assert (code, (tmp_path / "t").exists()) == (2, False)
    assert "--steps 0" in err


def test_a_ranked_edit_says_its_scores_and_can_be_made_again(edit: Run, bld: Run, tmp_path: Path) -> None:
    clip, out = tiny_clip(tmp_path / "clip"), tmp_path / "out"
    assert edit("--ranker", clip, "--candidates", 4, "--seed", 2)[0] == 0
    facts = json.loads((out / "edit.json").read_text())
    scores = [c["score"] for c in facts["candidates"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    assert facts["request"]["ranker"] == str(clip)
    _, shown, _ = bld("info", out / "result.png")
    assert bld(*shlex.split(shown.strip().splitlines()[-1])[1:], "--output", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "result.png").read_bytes() == (out / "result.png").read_bytes()
    assert bld("reconstruct", out, "--reconstruct", "poisson", "--candidates", 2, 0)[0] == 0
    again = json.loads((out / "poisson" / "edit.json").read_text())
    assert [c["score"] for c in again["candidates"]] == [scores[2], scores[0]]
    code, _, err = edit("--ranker", tmp_path)
    assert code == 2
    assert "not a model that ranks" in err


def test_only_the_best_candidates_are_tuned(edit: Run, tmp_path: Path) -> None:
    edit("--reconstruct", "latents", "--tune-steps", 2, "--candidates", 3, "--tune-candidates", 2)
    facts = json.loads((tmp_path / "out" / "edit.json").read_text())
    assert [c["reconstruction"] for c in facts["candidates"]] == ["latents", "latents", "stitch"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--candidates", "0,2"], "--candidates 0,2: expected numbers from 0 to 1"),
        (["--candidates", "-1"], "--candidates -1: expected numbers"),
        (["1"], "1: expected one folder; candidates are named with --candidates"),
        (["--reconstruct", "glue"], "--reconstruct glue: choose one of none, stitch, poisson"),
    ],
)
def test_reconstruct_refuses(words: list[str], message: str, edit: Run, bld: Run, tmp_path: Path) -> None:
    edit()
    before = sorted((tmp_path / "out").rglob("*"))
    code, out, err = bld("reconstruct", tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_reconstruct_wants_the_folder_as_the_edit_left_it(
    edit: Run, bld: Run, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, err = bld("reconstruct", out)
    assert code == 2
    assert "give the output folder of bld edit" in err
    edit()
    kept = (out / "latents.safetensors").read_bytes()
    for damaged in (b"", kept[:100]):
        (out / "latents.safetensors").write_bytes(damaged)
        code, _, err = bld("reconstruct", out)
        assert code == 2
        assert "not the latents of an edit, or damaged" in err
    edit("--candidates", 1, "--output", tmp_path / "other")
    (out / "latents.safetensors").write_bytes((tmp_path / "other" / "latents.safetensors").read_bytes())
    for number in (0, 1):
        code, _, err = bld("reconstruct", out, "--candidates", number)
        assert (code, err.count("\n")) == (2, 1), err
        assert "and edit.json are of two edits (1 latents, 2 candidates" in err
    (out / "latents.safetensors").write_bytes(kept)
    photo.write_bytes(photo.read_bytes() + b" ")
    code, _, err = bld("reconstruct", out)
    assert code == 2
    assert "has changed since" in err


def test_a_picture_from_before_rankers_still_tells_its_command(edit: Run, tmp_path: Path) -> None:
    edit()
    facts = read(tmp_path / "out" / "result.png")
    del facts["request"]["ranker"]
    assert "--ranker none" in command(facts)


def test_info_says_when_an_input_has_changed(
    edit: Run, bld: Run, photo: Path, mask: Path, tmp_path: Path
) -> None:
    edit()
    photo.write_bytes(mask.read_bytes())
    mask.unlink()
    _, out, _ = bld("info", tmp_path / "out" / "result.png")
    assert f"image {photo} has changed since" in out
    assert f"mask {mask} is not there" in out


def test_the_record_is_of_the_files_that_were_edited(
    edit: Run, bld: Run, photo: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may write to them, or remove them, while the model is at work."""

    def disturbed(*given: Any, **options: Any) -> Any:
        photo.write_bytes(contents[mask])
        mask.unlink()
        return load_model(*given, **options)

    contents, load_model = {path: path.read_bytes() for path in (photo, mask)}, load.load_model
    monkeypatch.setattr("bld.editor.load_model", disturbed)
    monkeypatch.setattr("bld.models.load.load_model", disturbed)
    out = tmp_path / "out"
    for run, words, folder in ((edit, (), out), (bld, ("reconstruct", out), out / "stitch")):
        code, _, err = run(*words)
        assert code == 0, err
        for path, content in contents.items():
            path.write_bytes(content)
        found = json.loads((folder / "edit.json").read_text())["inputs_sha256"]
        assert found == {"image": digest(contents[photo]), "mask": digest(contents[mask])}
        assert changed_inputs(read(folder / "result.png")) == []


def test_no_metadata_leaves_the_pngs_silent(edit: Run, bld: Run, tmp_path: Path) -> None:
    edit("--no-metadata")
    with Image.open(tmp_path / "out" / "result.png") as picture:
        assert picture.info == {}
    code, _, err = bld("info", tmp_path / "out" / "result.png")
    assert code == 2
    assert "--no-metadata" in err


def test_json_prints_edit_json_and_nothing_else(edit: Run, tmp_path: Path) -> None:
    _, out, _ = edit("--json")
    assert json.loads(out) == json.loads((tmp_path / "out" / "edit.json").read_text())


def test_a_second_edit_replaces_the_first_and_no_more(edit: Run, tmp_path: Path) -> None:
    edit("--candidates", 3)
    (tmp_path / "out" / "mine.txt").write_text("kept")
    edit("--candidates", 1)
    assert [p.name for p in sorted((tmp_path / "out" / "candidates").iterdir())] == ["00.png"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_what_an_edit_is_made_from_is_not_replaced_by_it(
    edit: Run, bld: Run, tmp_path: Path, mask: Path
) -> None:
    assert edit()[0] == 0
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    (out / "mask.png").write_bytes(mask.read_bytes())
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for run, words in [
        (edit, ["--image", out / "result.png"]),
        (edit, ["--image", tmp_path / "link" / "candidates" / "01.png"]),
        (edit, ["--mask", out / "grid.png", "--output", tmp_path / "link"]),
        (bld, ["reconstruct", out, "--output", out]),
    ]:
        code, _, err = run(*words)
        assert (code, err.count("\n")) == (2, 1), err
        assert "would be replaced; choose another folder" in err
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert edit("--image", out / "result.png", "--mask", out / "mask.png", "--output", tmp_path / "b")[0] == 0
    assert bld("reconstruct", tmp_path / "b", "--output", out)[0] == 2
    assert edit("--mask", out / "mask.png")[0] == 0, "it stays where it is"


def test_single_flags_go_on_top_of_a_preset(edit: Run, tmp_path: Path) -> None:
    edit("--preset", "paper")
    request = json.loads((tmp_path / "out" / "edit.json").read_text())["request"]
    assert (request["guidance_scale"], request["steps"], request["candidates"]) == (5.0, 3, 2)


# --- bad input ---


def bad_inputs(tmp_path: Path) -> dict[str, tuple[list[Any], str]]:
    """Words that spoil an edit, and what the message must say."""
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 90).save(whole)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:-400])
    empty = tmp_path / "empty.png"
    empty.touch()
    other = tmp_path / "other.png"
    Image.new("L", (40, 30), 255).save(other)
    black = tmp_path / "black.png"
    Image.new("L", (120, 90), 0).save(black)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder")
    return {
        "missing image": (["--image", tmp_path / "none.png"], "none.png does not exist"),
        "missing mask": (["--mask", tmp_path / "none.png"], "none.png does not exist"),
        "text as image": (["--image", text], "text.png"),
        "truncated": (["--image", cut], "cut.jpg"),
        "zero size": (["--image", empty], "empty.png"),
        "bomb": (["--max-pixels", 1000], "--max-pixels"),
        "sizes": (["--mask", other], "40x30"),
        "empty mask": (["--mask", black], "mask"),
        "empty prompt": (["--prompt", "  "], "prompt is empty"),
        "long prompt": (["--prompt", "a guitar " * 40], "--truncate-prompt"),
        "candidates": (["--candidates", 0], "from 1 to 256"),
        "steps": (["--steps", 1001], "from 1 to 1000"),
        "strength": (["--strength", 1.5], "from 0.01 to 1"),
        "guidance": (["--guidance-scale", "nan"], "--guidance-scale nan"),
        "not a number": (["--steps", "many"], "--steps"),
        "unknown flag": (["--stepz", 4], "--stepz"),
        "choice": (["--reconstruct", "magic"], "none, stitch"),
        "preset": (["--preset", "slow"], "paper, fast"),
        "model": (["--model", "nothing"], "unknown model nothing"),
        "output": (["--output", blocked], "blocked"),
        "output inside a file": (["--output", blocked / "deeper"], "blocked"),
        "device": (["--device", "cuda:99"], "--device cuda:99"),
        "dtype": (["--dtype", "float8"], "--dtype float8"),
    }


CASES = [
    "missing image", "missing mask", "text as image", "truncated", "zero size", "bomb", "sizes", "empty mask",
    "empty prompt", "long prompt", "candidates", "steps", "strength", "guidance", "not a number",
    "unknown flag", "choice", "preset", "model", "output", "output inside a file", "device", "dtype",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_code_2(edit: Run, tmp_path: Path, case: str) -> None:
    words, said = bad_inputs(tmp_path)[case]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = edit(*words)
    assert code == 2, err
    assert err.startswith("bld: ")
    assert err.count("\n") == 1, err
    assert said in err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def test_every_bad_input_is_tried(tmp_path: Path) -> None:
    assert sorted(CASES) == sorted(bad_inputs(tmp_path))


def test_a_folder_with_a_missing_part_is_named(edit: Run, tmp_path: Path, model: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text((model / "model_index.json").read_text())
    (tmp_path / "broken" / "unet").mkdir()
    code, _, err = edit("--model", tmp_path / "broken")
    assert code == 2
    assert "vae" in err
    assert err.count("\n") == 1


def test_info_refuses_other_pictures(bld: Run, photo: Path, tmp_path: Path) -> None:
    for path in (photo, tmp_path / "none.png"):
        code, _, err = bld("info", path)
        assert code == 2
        assert err.count("\n") == 1


def test_a_record_that_lacks_something_is_one_line(edit: Run, bld: Run, tmp_path: Path) -> None:
    edit()
    out, picture = tmp_path / "out", tmp_path / "damaged.png"
    whole = {"picture": read(out / "result.png"), "folder": json.loads((out / "edit.json").read_text())}
    for where, keys in [
        ("picture", ("candidate",)), ("picture", ("candidate", "number")), ("picture", ("model", "name")),
        ("picture", ("request", "prompt")), ("picture", ("inputs_sha256",)), ("picture", ("notes",)),
        ("folder", ("candidates",)), ("folder", ("candidates", 0, "number")),
        ("folder", ("candidates", 1, "score")), ("folder", ("model", "revision")),
    ]:  # fmt: skip
        facts = json.loads(json.dumps(whole[where]))
        *path, last = keys
        del functools.reduce(lambda node, key: node[key], path, facts)[last]
        text = PngInfo()
        text.add_text("bld", json.dumps(facts))
        Image.new("RGB", (4, 4)).save(picture, pnginfo=text)
        (out / "edit.json").write_text(json.dumps(facts))
        code, _, err = bld("info", picture) if where == "picture" else bld("reconstruct", out)
        assert (code, err.count("\n")) == (2, 1), err
        assert f"{last} is missing" in err


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_stopped_edit_leaves_nothing(
    edit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    edit()  # an earlier result must survive as well
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def halt(*_: Any, **__: Any) -> None:
        raise stop

    monkeypatch.setattr("bld.apps.output.grid", halt)  # late: the candidates are written by then
    if stop is KeyboardInterrupt:
        assert edit()[0] == 130
    else:
        with pytest.raises(stop):
            edit()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


# --- flags ---


def test_every_option_has_a_flag_and_no_default_of_its_own() -> None:
    assert sorted(n for names in GROUPS.values() for n in names) == sorted(FIELDS)

    @with_edit_options
    def command(*, changes: dict[str, Any]) -> None: ...

    parameters = inspect.signature(command).parameters
    assert {p.default for p in parameters.values()} == {None}
    for name, option in FIELDS.items():
        told = parameters[name].annotation.__metadata__[0].help
        assert told.startswith(option.metadata["help"])


def flags(command: Any) -> dict[str, str]:
    """What the help says of each option of an edit."""
    parameters = inspect.signature(command).parameters
    return {name: parameters[name].annotation.__metadata__[0].help for name in FIELDS if name in parameters}


def test_the_help_says_what_is_taken_for_a_flag_that_is_not_given() -> None:
    (command,) = batch.app.registered_commands
    assert flags(command.callback)["seed"].endswith("count up (default: made from each row's id)")
    assert "(default: 24, of baselines their own; 1 to 256)" in flags(evaluate.run)["candidates"]
    assert "seed" not in flags(evaluate.run), "each case has its own"
    told = flags(cli.reconstruct)
    for name in (name for group in FINISH for name in GROUPS[group]):
        assert "(default: as in the edit" in told[name]
        assert told[name].count("default") == 1
