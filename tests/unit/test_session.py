"""Sessions: ten edits leave what no mask covered, and a saved session is the session."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from bld import Editor, InvalidInput, Session
from bld.images import Photograph
from tests.tiny import GaussianModel

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(GaussianModel())


def photograph(dtype: type = np.uint16) -> Photograph:
    """Noise, 90 x 120, with alpha and a profile: whatever is lost on the way shows."""
    rng = np.random.default_rng(0)
    pixels, alpha = (rng.integers(0, 65536, (90, 120, *c)).astype(dtype) for c in ((3,), ()))
    return Photograph(pixels, alpha, SRGB)


def box(top: int, left: int, side: int = 16) -> np.ndarray:
    mask = np.zeros((90, 120), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def ten_edits(session: Session, editor: Editor, reconstruct: str = "stitch") -> np.ndarray:
    """Edit in ten places; returns where."""
    masks = [box(4 + 40 * (i % 2), 2 + 23 * (i // 2)) for i in range(10)]
    for i, mask in enumerate(masks):
        prompt = f"a {COLOURS[i % 3]} wall"
        session.edit(
            editor, mask, prompt, candidates=2, choose=i % 2, seed=i, steps=4, reconstruct=reconstruct
        )
    covered: np.ndarray = np.any(masks, axis=0)
    return covered


def same(a: Photograph, b: Photograph) -> bool:
    assert a.alpha is not None
    assert b.alpha is not None
    pixels = a.pixels.tobytes() == b.pixels.tobytes() and a.pixels.dtype == b.pixels.dtype
    return pixels and a.alpha.tobytes() == b.alpha.tobytes() and a.icc_profile == b.icc_profile


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("reconstruct", ["stitch", "poisson"])
def test_ten_edits_leave_everything_outside_their_masks(
    editor: Editor, dtype: type, reconstruct: str
) -> None:
    session = Session(photograph(dtype))
    before = session.photograph
    covered = ten_edits(session, editor, reconstruct)
    after = session.photograph
    assert after.pixels[~covered].tobytes() == before.pixels[~covered].tobytes()
    assert same(Photograph(before.pixels, after.alpha, after.icc_profile), before)
    changed = (after.pixels != before.pixels).any(-1)
    assert changed[covered].mean() > 0.95


def test_a_saved_session_comes_back_with_every_pixel_and_goes_on(editor: Editor, tmp_path: Path) -> None:
    session = Session(photograph())
    ten_edits(session, editor)
    for _ in range(4):
        session.undo()
    session.edit(editor, box(60, 60), "a blue wall", candidates=1, seed=3, steps=4)
    session.undo()
    session.save(tmp_path / "s")
    loaded = Session.load(tmp_path / "s")
    assert len(loaded.revisions) == 12
    for mine, theirs in zip(session.revisions, loaded.revisions, strict=True):
        assert same(mine.photograph, theirs.photograph)
        assert (mine.parent, mine.made) == (theirs.parent, theirs.made)
    assert loaded.current == session.current == 6
    assert loaded.branches() == [7, 11]
    assert loaded.redo() == session.redo() == 11
    for one in (session, loaded):
        one.edit(editor, box(2, 2), "a red wall", candidates=1, seed=9, steps=4)
    assert same(session.photograph, loaded.photograph)
    loaded.save(tmp_path / "s")
    assert len(Session.load(tmp_path / "s").revisions) == 13


def test_undo_redo_and_branches(editor: Editor) -> None:
    session = Session(photograph())
    first = [session.edit(editor, box(4, 4), "red", candidates=1, seed=i, steps=2) for i in range(2)]
    assert session.current == 2
    assert session.undo() == 1
    assert session.photograph is first[0].best.photograph
    assert session.undo() == 0
    with pytest.raises(InvalidInput, match="nothing to undo"):
        session.undo()
    session.edit(editor, box(40, 40), "blue", candidates=1, seed=7, steps=2)
    assert session.branches(0) == [1, 3]
    with pytest.raises(InvalidInput, match="nothing to redo"):
        session.redo()
    session.go_to(2)
    assert (session.undo(), session.undo()) == (1, 0)
    assert (session.redo(), session.redo()) == (1, 2), "redo follows the branch that was last worked on"


def test_what_cannot_be_added_is_refused(editor: Editor) -> None:
    session = Session(photograph())
    stale = editor.edit(session.photograph, box(4, 4), "red", candidates=1, seed=0, steps=2)
    with pytest.raises(InvalidInput, match="candidate 1: there are 0 to 0"):
        session.add(stale, choose=1)
    session.add(stale)
    with pytest.raises(InvalidInput, match="not an edit of the session's current picture"):
        session.add(stale)
    with pytest.raises(InvalidInput, match="revision 5: there are 0 to 1"):
        session.go_to(5)
    assert session.current == 1


def replace(old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = folder / "session.json"
        text = index.read_text()
        assert old in text
        index.write_text(text.replace(old, new))

    return damage


def latest(pairs: list[list[object]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        index = json.loads((folder / "session.json").read_text())
        assert index["latest"] == [[0, 1]]
        (folder / "session.json").write_text(json.dumps({**index, "latest": pairs}))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "session.json").unlink(),
        lambda folder: (folder / "session.json").write_text("{"),
        lambda folder: (folder / "001.png").unlink(),
        replace('"format": 1', '"format": 99'),
        replace('"parent": 0', '"parent": 1'),
        replace('"current": 1', '"current": 7'),
        replace('"current": 1', '"current": 1.0'),
        replace('"current": 1', '"current": true'),
        replace('"parent": 0', '"parent": 0.0'),
        replace('"parent": 0', '"parent": null'),
        replace('"parent": null', '"parent": 0'),
        latest([[0, 0]]),
        latest([[1, 0]]),
        latest([[0, 1.0]]),
        latest([[False, 1]]),
        replace('"001.png"', "null"),
    ],
)
def test_a_damaged_session_is_refused_in_one_line(
    editor: Editor, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    session = Session(photograph())
    session.edit(editor, box(4, 4), "red", candidates=1, seed=0, steps=2)
    session.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InvalidInput) as error:
        Session.load(tmp_path)
    assert "\n" not in str(error.value)


def test_another_sessions_folder_is_not_written_over(editor: Editor, tmp_path: Path) -> None:
    mine, theirs = Session(photograph()), Session(photograph())
    for seed, session in enumerate((mine, theirs)):
        session.edit(editor, box(4, 4), "red", candidates=1, seed=seed, steps=2)
    mine.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InvalidInput, match="holds another session"):
        theirs.save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("place", "reason"), [("file", "File exists"), ("file/x", "Not a directory")])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidInput, match=rf"{place}: cannot be written \({reason}\); choose another folder"
    ):
        Session(photograph()).save(tmp_path / place)


def test_a_picture_that_is_not_the_sessions_is_not_written_over(editor: Editor, tmp_path: Path) -> None:
    session = Session(photograph())
    session.edit(editor, box(4, 4), "red", candidates=1, seed=0, steps=2)
    (tmp_path / "001.png").write_bytes(b"mine")
    with pytest.raises(InvalidInput, match=r"001\.png: not of this session"):
        session.save(tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("001.png", b"mine")]


def test_a_save_makes_up_for_one_that_was_broken_off_and_for_what_was_lost(
    editor: Editor, tmp_path: Path
) -> None:
    session = Session(photograph())
    session.edit(editor, box(4, 4), "red", candidates=1, seed=0, steps=2)
    session.save(tmp_path)
    (tmp_path / "session.json").unlink()
    (tmp_path / "001.png").unlink()
    session.save(tmp_path)
    (tmp_path / "000.png").unlink()
    session.save(tmp_path)
    assert same(Session.load(tmp_path).photograph, session.photograph)


def test_pictures_of_a_session_open_anywhere(editor: Editor, tmp_path: Path) -> None:
    session = Session(photograph(np.uint8))
    session.save(tmp_path)
    with Image.open(tmp_path / "000.png") as picture:
        assert picture.mode == "RGBA"
        assert picture.size == (120, 90)


def test_another_photographs_session_is_told_by_its_pixels(editor: Editor, tmp_path: Path) -> None:
    """Same prompt, same seed, same size: nothing but the pixels is different."""
    Session(photograph()).save(tmp_path)
    other = photograph()
    other.pixels[0, 0] ^= 1
    theirs = Session(other)
    theirs.edit(editor, box(4, 4), "red", candidates=1, seed=0, steps=2)
    with pytest.raises(InvalidInput, match="holds another session"):
        theirs.save(tmp_path)
    Image.open(tmp_path / "000.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "000.png")
    with pytest.raises(InvalidInput, match=r"000.png is another picture"):
        Session.load(tmp_path)


def test_an_edit_of_a_scribble_follows_the_picture_that_it_was_painted_into(
    editor: Editor, tmp_path: Path
) -> None:
    session = Session(photograph())
    assert not session.can_undo
    painted = dataclasses.replace(session.photograph, pixels=session.photograph.pixels.copy())
    painted.pixels[4:20, 4:20] = 7
    result = editor.edit(painted, box(4, 4), "red", candidates=1, seed=0, steps=2, strength=0.5)
    with pytest.raises(InvalidInput, match="not an edit of the session's current picture"):
        session.add(result)
    session.add(result, scribble=painted)
    assert session.revisions[1].made["scribble"] is True
    assert session.can_undo
    assert not session.can_redo
    session.undo()
    assert session.photograph is not painted
    assert session.can_redo
    session.save(tmp_path)
    assert Session.load(tmp_path).revisions[1].made == session.revisions[1].made


def test_a_candidate_that_will_not_be_is_refused_before_the_edit() -> None:
    session, model = Session(photograph()), GaussianModel()
    with pytest.raises(InvalidInput, match="candidate 2: there are 0 to 1"):
        session.edit(Editor(model), box(4, 4), "red", choose=2, candidates=2, steps=2)
    assert model.calls == 0
