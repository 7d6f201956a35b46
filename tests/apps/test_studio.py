"""The studio without a browser: what a painting becomes, what the page says, and who sees what."""

import base64
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bld import EditOptions, Editor, InvalidInput, Session
from bld.apps import cli
from bld.apps.record import command as again
from bld.apps.record import read
from bld.errors import Cancelled
from bld.images import Photograph, open_photograph
from bld.masks import Box
from bld.options import FIELDS, MAX_SEED, PRESETS, LoadOptions, preset
from tests.disk import full_disk
from tests.tiny import GatedModel, GaussianModel

gr = pytest.importorskip("gradio", reason="the studio needs the extra [studio]")

from bld.apps.studio import canvas, controls, events, layout, results  # noqa: E402
from bld.apps.studio.canvas import Painting  # noqa: E402
from bld.apps.studio.edits import Runner, Working  # noqa: E402
from bld.apps.studio.events import told  # noqa: E402
from bld.apps.studio.visit import Job, Visit, Visits, file_stem  # noqa: E402

SIZE = (60, 80)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def photograph(dtype: type = np.uint8, *, alpha: bool = False) -> Photograph:
    rng = np.random.default_rng(0)
    top = np.iinfo(dtype).max
    pixels = rng.integers(0, top + 1, (*SIZE, 3)).astype(dtype)
    return Photograph(pixels, rng.integers(0, top + 1, SIZE).astype(dtype) if alpha else None)


def box(top: int = 10, left: int = 20, side: int = 24) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


def sent(mask: np.ndarray, colours: np.ndarray | None = None, base: int = 0) -> str:
    """What the canvas sends."""
    layers = {"mask": canvas.mask_url(mask), "colours": ""}
    if colours is not None:
        layers["colours"] = canvas.data_url(Image.fromarray(colours), "png")
    return json.dumps({"base": base, **layers})


# --- a painting becomes a mask ---


@given(shape=shapes, seed=st.integers(0, 99))
def test_a_mask_comes_back_from_the_canvas_as_it_went_there(shape: tuple[int, int], seed: int) -> None:
    mask = random(seed, *shape)
    back = canvas.read_painting(sent(mask, base=seed), shape)
    assert back.base == seed
    assert back.colours is None
    np.testing.assert_array_equal(back.mask, mask)


@given(shape=shapes, factor=st.integers(1, 4), seed=st.integers(0, 99))
def test_where_nothing_was_painted_the_mask_stays_to_the_bit(
    shape: tuple[int, int], factor: int, seed: int
) -> None:
    mask = random(seed, shape[0] * factor, shape[1] * factor)
    before = random(seed + 1, *shape)
    assert canvas.merged(mask, before, before.copy()) is mask
    painted = before.copy()
    painted[0, 0] = 255 - before[0, 0] // 2
    after = canvas.merged(mask, before, painted)
    np.testing.assert_array_equal(after[factor:], mask[factor:])
    np.testing.assert_array_equal(after[:, factor:], mask[:, factor:])


@given(shape=shapes, seed=st.integers(0, 99))
def test_a_stroke_is_hard_and_covers_what_its_brush_covers_by_half(shape: tuple[int, int], seed: int) -> None:
    before, painted = np.zeros(shape, np.uint8), random(seed, *shape)
    np.testing.assert_array_equal(
        canvas.merged(before, before, painted), np.where(painted >= 128, 255, 0).astype(np.uint8)
    )


def test_a_large_photograph_is_painted_on_small_and_its_mask_is_large() -> None:
    full = (3000, 4000)
    size = canvas.canvas_size(full)
    assert size == (1152, 1536)
    painted = np.zeros(size, np.uint8)
    painted[200:400, 300:700] = 255
    mask = canvas.merged(np.zeros(full, np.uint8), np.zeros(size, np.uint8), painted)
    assert mask.shape == full
    assert set(np.unique(mask)) == {0, 255}
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    scale = 4000 / 1536
    found = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    np.testing.assert_allclose(found, np.array((200, 400, 300, 700)) * scale, atol=scale / 2)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (1536, 1536), (37, 53)])
def test_the_canvas_is_the_photographs_own_size_up_to_a_limit(size: tuple[int, int]) -> None:
    found = canvas.canvas_size(size)
    assert max(found) <= canvas.LONGEST
    assert min(found) >= 1
    if max(size) <= canvas.LONGEST:
        assert found == size


@given(seed=st.integers(0, 99), first=st.integers(1, 9), second=st.integers(0, 9))
def test_growing_and_shrinking_nest_and_are_each_others_complement(
    seed: int, first: int, second: int
) -> None:
    mask = np.where(random(seed, *SIZE) > 250, np.uint8(255), np.uint8(0))
    grown = canvas.grown(mask, first)
    assert (grown >= mask).all()
    assert (canvas.grown(mask, first + second) >= grown).all()
    np.testing.assert_array_equal(canvas.inverted(canvas.grown(canvas.inverted(mask), -first)), grown)
    np.testing.assert_array_equal(canvas.inverted(canvas.inverted(mask)), mask)


def test_growing_is_by_pixels_and_a_mask_at_the_border_stays_there_when_shrunk() -> None:
    dot = np.zeros(SIZE, np.uint8)
    dot[30, 40] = 255
    for radius in (1, 7, 8, 20):
        rows = np.flatnonzero(canvas.grown(dot, radius).any(axis=1))
        assert (rows[0], rows[-1]) == (30 - radius, 30 + radius)
    half = np.zeros(SIZE, np.uint8)
    half[:, :40] = 255
    shrunk = canvas.grown(half, -5)
    assert (shrunk[:, :35] == 255).all()
    assert not shrunk[:, 35:].any()


@given(seed=st.integers(0, 99), pixels=st.integers(1, 30))
def test_feathering_edits_the_same_pixels(seed: int, pixels: int) -> None:
    mask = canvas.grown(np.where(random(seed, *SIZE) > 250, np.uint8(255), np.uint8(0)), 3)
    soft = canvas.feathered(mask, pixels)
    np.testing.assert_array_equal(soft > 0, mask > 0)
    assert (soft <= mask).all()


# --- a scribble becomes part of the picture ---


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_scribble_changes_nothing_but_what_it_covers_within_the_mask(dtype: type) -> None:
    before, mask = photograph(dtype, alpha=True), box()
    colours = np.zeros((*SIZE, 4), np.uint8)
    colours[15:30, 5:30] = (200, 30, 40, 255)  # half of it outside
    painted = canvas.scribbled(before, mask, colours)
    covered = (colours[..., 3] > 0) & (mask > 0)
    assert painted.pixels.dtype == dtype
    np.testing.assert_array_equal(painted.pixels[~covered], before.pixels[~covered])
    np.testing.assert_array_equal(painted.alpha, before.alpha)
    levels = painted.pixels[covered] / np.iinfo(dtype).max * 255
    np.testing.assert_allclose(levels, np.broadcast_to((200, 30, 40), levels.shape), atol=0.5)
    assert "scribble" in painted.notes[-1]


def test_no_scribble_is_no_copy() -> None:
    before = photograph()
    colours = np.zeros((*SIZE, 4), np.uint8)
    assert canvas.scribbled(before, box(), None) is before
    assert canvas.scribbled(before, box(), colours) is before
    colours[50:55, 70:75] = 255
    assert canvas.scribbled(before, box(), colours) is before, "outside the mask"


# --- what is no painting ---


def png(shape: tuple[int, ...]) -> str:
    stream = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(stream, "png")
    return canvas.URL + base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize(
    "text",
    [
        None, "", "{", "[]", "7", '{"base": 0}', '{"base": "x", "mask": "", "colours": ""}',
        json.dumps({"base": 0, "mask": "file:///etc/passwd", "colours": ""}),
        json.dumps({"base": 0, "mask": canvas.URL + "%%%", "colours": ""}),
        json.dumps({"base": 0, "mask": canvas.URL + base64.b64encode(b"no picture").decode(), "colours": ""}),
        json.dumps({"base": 0, "mask": png((5, 5, 4)), "colours": ""}),
        json.dumps({"base": 0, "mask": png((1, 3_000_000)), "colours": ""}),
        pytest.param("[" * 200_000, id="deep"),
    ],
)  # fmt: skip
def test_what_is_no_painting_is_refused_in_one_line(text: str | None) -> None:
    with pytest.raises(InvalidInput) as error:
        canvas.read_painting(text, SIZE)
    assert "\n" not in str(error.value)


# --- the options on the page ---


def test_every_option_has_its_one_place() -> None:
    placed = [*controls.MAIN, *controls.ADVANCED, *controls.UPLOAD, *controls.ELSEWHERE]
    assert sorted(placed) == sorted(FIELDS)


@pytest.mark.parametrize("name", [*controls.MAIN, *controls.ADVANCED, *controls.UPLOAD])
def test_a_component_has_the_default_range_choices_and_help_of_its_option(name: str) -> None:
    option, made = FIELDS[name], controls.component(name)
    assert controls.value(name, made.value) == option.default
    assert made.info == option.metadata["help"]
    low, high = option.metadata["low"], option.metadata["high"]
    if isinstance(made, gr.Number | gr.Slider):
        assert (made.minimum, made.maximum) == (low, high)
    elif low is not None and name != "seed":
        assert f"{low:g} to {high:g}" in made.placeholder
    if get_origin(option.type) is not None and isinstance(made, gr.Dropdown):
        assert [choice for _, choice in made.choices] == list(get_args(option.type))


def test_untouched_components_ask_for_the_defaults() -> None:
    held = {n: controls.component(n).value for n in (*controls.MAIN, *controls.ADVANCED, *controls.UPLOAD)}
    assert controls.options(held) == EditOptions()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_sets_on_the_command_line(name: Any) -> None:
    assert controls.options(controls.preset_values(name)) == preset(name)
    assert controls.options(controls.preset_values(controls.DEFAULT)) == EditOptions()


def test_a_seed_keeps_every_digit() -> None:
    largest = MAX_SEED - 256
    assert controls.options({"seed": f" {largest} "}).seed == largest
    assert controls.options({"seed": ""}).seed is None


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"seed": "ten"}, "Seed 'ten': expected a whole number"),
        ({"seed": "-1"}, "expected from 0"),
        ({"seed": str(2**64)}, "expected from 0"),
        ({"candidates": None}, "Candidates is empty"),
        ({"candidates": 257}, "expected from 1 to 256"),
        ({"steps": "2.5"}, "whole number"),
        ({"steps": "inf"}, "whole number"),
        ({"guidance_scale": "nan"}, "expected from 1"),
        ({"guidance_scale": "high"}, "expected a number"),
        ({"strength": 0}, "expected from 0.01"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(held: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        controls.options(held)


def test_messages_name_what_is_on_the_page() -> None:
    said = "shorten it or allow that with --truncate-prompt; try --no-soft-mask, --invert-mask or --wrong"
    assert controls.in_words(said) == (
        "shorten it or allow that with “Truncate prompt”; try “Soft mask” off, Invert or --wrong"
    )


def test_a_message_is_escaped_for_it_may_quote_a_visitor() -> None:
    def handler() -> None:
        raise InvalidInput("the prompt is longer: '<img src=x onerror=alert(1)>' would be cut")

    with pytest.raises(gr.Error) as error:
        told(handler)()
    assert "<" not in error.value.message
    assert "&lt;img" in error.value.message


def test_what_nobody_expected_is_told_too_and_the_terminal_says_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def handler() -> None:
        raise MemoryError("<b>")

    with pytest.raises(gr.Error) as error:
        told(handler)()
    assert "MemoryError" in error.value.message
    assert "Traceback" in capsys.readouterr().err


def test_what_the_page_says_of_an_edit_is_escaped() -> None:
    visit, editor = begun(Path("unused")), Editor(GaussianModel())
    result = editor.edit(visit.open_session.photograph, box(), "<b>red</b>", candidates=1, steps=2, seed=0)
    job = Job(0, visit.open_session.photograph, result.crop.box, box(), "<b>red</b>", result.options)
    edit = results.Edit(job, result, Path("unused"), ())
    assert "<b>red" not in results.details(edit, 0)
    assert "&lt;b&gt;red" in results.details(edit, 0)


# --- visits ---


def begun(folder: Path, picture: Photograph | None = None) -> Visit:
    visit = Visit(folder)
    visit.session = Session(picture or photograph())
    visit.clear_mask()
    return visit


def test_an_upload_keeps_its_details_where_nothing_is_painted(tmp_path: Path) -> None:
    """Greys and single pixels of a mask outlive being shown small and painted on elsewhere."""
    visit = begun(tmp_path, Photograph(np.zeros((2000, 3000, 3), np.uint8)))
    fine = random(0, 2000, 3000)
    base = visit.put(fine)
    small = visit.shown_mask()
    painted = small.copy()
    painted[500:600, 700:800] = 255
    mask = visit.painted(Painting(base, painted, None))
    np.testing.assert_array_equal(mask[:900], fine[:900])
    assert (mask[1000:1150, 1400:1550] == 255).all()


def test_undone_on_the_canvas_a_change_of_the_mask_is_undone(tmp_path: Path) -> None:
    visit = begun(tmp_path)
    first = visit.put(canvas.feathered(box(), 6))
    second = visit.put(canvas.inverted(box()))
    for base, mask in ((second, canvas.inverted(box())), (first, canvas.feathered(box(), 6))):
        np.testing.assert_array_equal(visit.painted(Painting(base, mask, None)), mask)


def test_visits_are_apart_and_go_when_their_page_has_gone(tmp_path: Path) -> None:
    visits = Visits(tmp_path, grace=60)
    mine, theirs = visits.of("a"), visits.of("b")
    assert mine is visits.of("a")
    assert mine is not theirs
    for visit in (mine, theirs):
        visit.start(photograph(), "p")
        (visit.folder / "file").touch()
    mine.job = asked = job()
    now = time.monotonic()
    visits.leave("a")
    assert asked.cancelled.is_set()
    visits.sweep(now + 30)
    assert visits.of("b") is theirs
    assert mine.place.exists(), "its page may come back"
    visits.sweep(now + 61)
    assert not mine.place.exists()
    assert (theirs.folder / "file").exists()
    assert visits.of("a") is not mine
    visits.close()
    assert not tmp_path.exists()


def test_a_page_that_comes_back_finds_everything(tmp_path: Path) -> None:
    visits = Visits(tmp_path, grace=60)
    visit = visits.of("a")
    visits.leave("a")
    assert visits.of("a") is visit
    visits.sweep(time.monotonic() + 1000)
    assert visits.of("a") is visit


def test_an_upload_that_nobody_came_for_is_removed(tmp_path: Path) -> None:
    visits = Visits(tmp_path)
    visit = visits.of("a")
    old, new = tmp_path / "0f" / "old.png", tmp_path / "1f" / "new.png"
    for path in (old, new):
        path.parent.mkdir()
        path.touch()
    os.utime(old.parent, (0, 0))
    visits.sweep(time.monotonic())
    assert not old.parent.exists()
    assert new.exists()
    assert visit.place.exists()


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("/tmp/x/Küche 1.png", "Küche-1"),
        ("../../etc/passwd", "passwd"),
        ("<script>.png", "script"),
        (".png", "png"),
        ("???", "photograph"),
    ],
)
def test_a_file_is_named_after_its_photograph_and_nothing_else(name: str, stem: str) -> None:
    assert file_stem(name) == stem


# --- running ---


def job(**options: Any) -> Job:
    asked = EditOptions(**{"candidates": 2, "steps": 6, "seed": 1, **options})
    return Job(0, photograph(), Box(0, 10, 50, 50), box(), "a red wall", asked)


def test_a_run_tells_how_far_it_is_shows_what_it_makes_and_ends_in_the_result() -> None:
    model = GatedModel()
    updates = Runner(Editor(model)).run(job())
    model.let(3)
    while not (working := next(updates)).preview:
        assert isinstance(working, Working)
    assert working.preview.startswith("data:image/webp")
    model.let(100)
    *_, result = updates
    assert len(result.candidates) == 2
    alone = Editor(GaussianModel()).edit(photograph(), box(), "a red wall", candidates=2, steps=6, seed=1)
    np.testing.assert_array_equal(result.best.photograph.pixels, alone.best.photograph.pixels)


def test_cancel_ends_an_edit_within_a_step_and_frees_the_model() -> None:
    model = GatedModel()
    runner, asked = Runner(Editor(model)), job(steps=50)
    updates = runner.run(asked)
    model.let(3)
    while next(updates).done < 3:
        pass
    asked.cancelled.set()
    model.let(100)
    with pytest.raises(Cancelled):
        list(updates)
    assert model.begun <= 4
    *_, result = runner.run(job())
    assert len(result.candidates) == 2


def test_who_waits_for_the_model_may_give_up_and_others_get_their_turn() -> None:
    model = GatedModel()
    runner, first, second = Runner(Editor(model)), job(steps=3), job(steps=3)
    running = runner.run(first)
    next(running)  # it has the model
    waiting = runner.run(second)
    second.cancelled.set()
    with pytest.raises(Cancelled):
        next(waiting)
    model.let(3)
    *_, result = running
    assert result.prompt == "a red wall"


def test_a_run_that_nobody_listens_to_any_more_is_cancelled() -> None:
    asked = job(steps=50)
    updates = Runner(Editor(GaussianModel())).run(asked)
    next(updates)
    updates.close()
    assert asked.cancelled.is_set()


def test_how_far_an_edit_is_in_words() -> None:
    said = layout.status(Working("blend", 3, 20, 8.4))
    assert "step 3 of 20, about 8 s left" in said
    assert "max='20'" in said
    assert "left" not in layout.status(Working("decode", 0, 1))


def test_so_many_may_wait_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WAITING", 2)
    parts = SimpleNamespace(
        **{name: gr.Button() for name in ("status", "preview", "edit", "cancel")},
        options={name: controls.component(name) for name in (*controls.MAIN, *controls.ADVANCED)},
    )
    visits, held = Visits(tmp_path), [part.value for part in parts.options.values()]
    runner = Runner(Editor(GaussianModel()))
    studio = events.Studio(runner, visits, parts, loading=LoadOptions(), ranker="none", max_pixels=10**6)

    def ask(who: str) -> Any:
        visit = visits.of(who)
        if visit.session is None:
            visit.start(photograph(), "p")
        return studio.ask(SimpleNamespace(session_hash=who), sent(box()), "a red wall", *held)

    ask("a"), ask("b")
    with pytest.raises(InvalidInput, match="your last edit is still running"):
        ask("a")
    with pytest.raises(InvalidInput, match="2 edits are waiting already"):
        ask("c")
    visits.of("a").cancel()
    ask("c")


# --- results, and the command line on them ---


@pytest.fixture
def made(tmp_path: Path, model: Path) -> SimpleNamespace:
    """A visit after two edits: the second candidate of the first one used, then a scribble."""
    editor, visit = Editor.from_pretrained(str(model)), Visit(tmp_path / "visit")
    visit.start(photograph(alpha=True), "kitchen")
    edits, colours = [], np.zeros((*SIZE, 4), np.uint8)
    colours[5:20, 5:20] = (0, 120, 250, 255)
    for scribble, strength in ((None, 1.0), (colours, 0.5)):
        painting = canvas.read_painting(sent(box() if scribble is None else box(2, 2, 20), scribble), SIZE)
        options = EditOptions(candidates=2, steps=3, seed=4, strength=strength)
        asked = visit.ask(editor.model, painting, "a guitar", options)
        *_, result = Runner(editor).run(asked)
        edits.append(results.keep(visit, asked, result, LoadOptions(), "auto"))
        visit.chosen = 1
        visit.use()
        visit.clear_mask()
    return SimpleNamespace(visit=visit, edits=edits)


def test_what_is_used_becomes_the_next_input_and_an_older_result_a_branch(made: SimpleNamespace) -> None:
    visit, (first, second) = made.visit, made.edits
    session = visit.open_session
    assert [revision.parent for revision in session.revisions] == [None, 0, 1]
    assert session.revisions[1].photograph is first.result.candidates[1].photograph
    assert session.revisions[2].made["scribble"] is True
    assert second.job.source is not session.revisions[1].photograph
    session.undo()
    session.undo()
    visit.chosen = 0
    visit.use()
    assert [revision.parent for revision in session.revisions] == [None, 0, 1, 1]


def test_outside_the_masks_the_session_keeps_every_byte(made: SimpleNamespace) -> None:
    before, after = (made.visit.open_session.revisions[i].photograph for i in (0, 2))
    outside = (box() == 0) & (box(2, 2, 20) == 0)
    np.testing.assert_array_equal(after.pixels[outside], before.pixels[outside])
    np.testing.assert_array_equal(after.alpha, before.alpha)


def test_the_zip_is_a_session_and_its_edits_can_be_run_again(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(results.session_zip(made.visit)) as archive:
        archive.extractall(tmp_path / "home")
    loaded = Session.load(tmp_path / "home")
    assert loaded.current == 2
    np.testing.assert_array_equal(loaded.photograph.pixels, made.visit.open_session.photograph.pixels)
    monkeypatch.chdir(tmp_path / "home")
    for number in ("01", "02"):
        facts = read(Path(f"edits/{number}/candidates/01.png"))
        assert facts["request"]["image"] == f"edits/{number}/image.png"
        assert facts["request"]["mask"] == f"edits/{number}/mask.png"
        monkeypatch.setattr(sys, "argv", ["bld", "info", f"edits/{number}/result.png"])
        assert cli.main() == 0
        out = capsys.readouterr().out
        assert "is not there" not in out
        assert "has changed" not in out
        monkeypatch.setattr(sys, "argv", [*shlex.split(again(facts)), "--output", f"again/{number}"])
        assert cli.main() == 0, capsys.readouterr().err
        mine, theirs = (
            open_photograph(Path(folder) / number / "candidates" / "01.png", max_pixels=10**6)
            for folder in ("edits", "again")
        )
        np.testing.assert_array_equal(mine.pixels, theirs.pixels)
        np.testing.assert_array_equal(mine.alpha, theirs.alpha)


@pytest.fixture
def asked(tmp_path: Path) -> SimpleNamespace:
    """A visit, and an edit of its photograph that is made and not kept yet."""
    editor, visit = Editor(GaussianModel()), Visit(tmp_path / "visit")
    visit.start(photograph(), "kitchen")
    options = EditOptions(candidates=2, steps=2, seed=4)
    job = visit.ask(editor.model, canvas.read_painting(sent(box()), SIZE), "a guitar", options)
    *_, result = Runner(editor).run(job)
    return SimpleNamespace(visit=visit, kept=lambda: results.keep(visit, job, result, LoadOptions(), "none"))


def test_an_edit_that_could_not_be_kept_is_not_in_the_way_of_the_next(asked: SimpleNamespace) -> None:
    """The disk is full, and then it is not."""
    with full_disk(16_000), pytest.raises((OSError, InvalidInput)):
        asked.kept()
    with zipfile.ZipFile(results.session_zip(asked.visit)) as archive:
        assert "session.json" in archive.namelist()
    assert asked.kept().folder.name == "01"
    with zipfile.ZipFile(results.session_zip(asked.visit)) as archive:
        assert "edits/01/edit.json" in archive.namelist()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_edit_of_a_photograph_that_was_put_away_is_not_kept(
    when: str, asked: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened while the pictures of the edit were written."""
    write = results.write

    def interrupted(*given: Any, **how: Any) -> None:
        if when == "after":
            write(*given, **how)
        asked.visit.start(photograph(), "garden")
        if when == "before":
            write(*given, **how)

    monkeypatch.setattr(results, "write", interrupted)
    with pytest.raises(Cancelled):
        asked.kept()
    assert asked.visit.edit is None
    assert asked.visit.edits == 0


def test_a_picture_to_keep_is_the_chosen_one_and_says_how_it_was_made(made: SimpleNamespace) -> None:
    made.visit.chosen = 1
    path = Path(results.picture_file(made.visit))
    assert path.name == "kitchen-edit-02-candidate-2.png"
    assert read(path)["candidate"]["number"] == 1
    chosen = made.edits[1].result.candidates[1].photograph
    np.testing.assert_array_equal(open_photograph(path, max_pixels=10**6).pixels, chosen.pixels)


def test_the_page_shows_each_candidate_with_its_background(made: SimpleNamespace) -> None:
    shown = results.gallery(made.edits[0])
    assert [text for _, text in shown] == ["1 · background unchanged", "2 · background unchanged"]
    assert all(Path(path).is_file() for path, _ in shown)
    assert [text for _, text in results.history(made.visit)] == [
        "0 · photograph", "1 · a guitar", "2 · a guitar"
    ]  # fmt: skip
    for whole, size in ((True, SIZE[::-1]), (False, None)):
        before, after = results.comparison(made.visit, whole=whole)
        with Image.open(before) as one, Image.open(after) as other:
            assert one.size == other.size
            assert size in (None, one.size)


# --- the command ---


@pytest.mark.parametrize("given", ["nobody", ":secret", "user:"])
def test_credentials_need_both_parts(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bld", "studio", "--auth", given])
    assert cli.main() == 2
    assert "USER:PASSWORD" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["bld", "studio"])
    assert cli.main() == 2
    assert "pip install 'blended-latent-diffusion[studio]'" in capsys.readouterr().err


def test_it_serves_until_it_is_told_to_end_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    words = ["studio", "--model", str(model), "--port", str(free_port())]
    command = [sys.executable, "-m", "bld.apps.cli", *words]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "BLD_STUDIO_AUTH": "ada:secret"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address = next(line for line in process.stdout if "the studio is at" in line).split()[4]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}/config", timeout=30)
        assert list(tmp_path.glob("bld-studio-*"))
        port = address.rsplit(":", 1)[1]
        refused = announced(int(port), 100_000_000)
        taken = subprocess.run(
            [*command[:-1], port], capture_output=True, text=True, env=environment, check=False
        )
        assert taken.returncode == 2
        assert f"cannot listen on 127.0.0.1, port {port}" in taken.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    assert refused.startswith(b"HTTP/1.1 413 "), "whoever sends it, it is not waited for"
    assert not list(tmp_path.glob("bld-studio-*"))


def announced(port: int, length: int) -> bytes:
    """What is answered to a body that is announced and not sent: nothing as long as it is waited for."""
    head = "POST /gradio_api/queue/join HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.sendall(f"{head}content-length: {length}\r\n\r\n".encode())
        try:
            return line.recv(1000)
        except TimeoutError:
            return b""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_help_is_light() -> None:
    script = (
        "import sys; from bld.apps import cli; sys.argv = ['bld', 'studio', '--help']; code = cli.main(); "
        "assert not {'gradio', 'torch'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-upload-mb" in done.stdout
