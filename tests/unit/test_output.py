"""The output folder: all of an edit or nothing, and never somebody else's files."""

from pathlib import Path

import pytest

from bld import InvalidInput
from bld.apps.output import ENTRIES, RECORD, staged


def fill(stage: Path, content: str) -> None:
    for entry in ENTRIES:
        if "." in entry:
            (stage / entry).write_text(content)
        else:
            (stage / entry).mkdir()
            (stage / entry / "00.png").write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_new_folder_appears_whole_and_an_old_one_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    for content in ("first", "second"):
        with staged(out) as stage:
            fill(stage, content)
            if content == "second":
                assert contents(out)[RECORD] == "first", "not before the block has ended"
        assert {text for name, text in contents(out).items() if name != "notes.txt"} == {content}
        (out / "notes.txt").write_text("mine")
    assert sorted(p.name for p in out.iterdir()) == sorted([*ENTRIES, "notes.txt"])


def test_a_failed_block_leaves_nothing_not_even_parents(tmp_path: Path) -> None:
    def interrupted(stage: Path) -> None:
        fill(stage, "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "a" / "b" / "out") as stage:
        interrupted(stage)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", range(2 * len(ENTRIES)))
def test_a_failure_while_things_are_moved_puts_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    out = tmp_path / "out"
    with staged(out) as stage:
        fill(stage, "first")
    before, moves, move = contents(out), [0], Path.replace

    def interrupted(source: Path, target: Path) -> Path:
        moves[0] += 1
        if moves[0] == failing + 1:
            raise KeyboardInterrupt
        return move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt), staged(out) as stage:
            fill(stage, "second")
    assert contents(out) == before
    assert sorted(p.name for p in out.iterdir()) == sorted(ENTRIES)


@pytest.mark.parametrize(
    ("entries", "record"), [(ENTRIES, RECORD), (("a.gif", "candidates", "a.json"), "a.json")]
)
def test_files_that_bld_did_not_write_are_not_touched(
    tmp_path: Path, entries: tuple[str, ...], record: str
) -> None:
    (tmp_path / "candidates").mkdir()
    (tmp_path / "candidates" / "mine.txt").write_text("mine")
    with (
        pytest.raises(InvalidInput, match=rf"candidates is there, but no {record}"),
        staged(tmp_path, entries, record=record),
    ):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {"candidates/mine.txt": "mine"}


def test_a_link_that_leads_nowhere_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(InvalidInput, match="out: a link that leads nowhere"), staged(tmp_path / "out"):
        pytest.fail("the block must not run")


def test_a_folder_that_comes_at_the_last_moment_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, exists = tmp_path / "out", Path.exists
    with staged(out) as stage:
        fill(stage, "second")
        out.mkdir()
        fill(out, "first")
        seen = iter([False])
        monkeypatch.setattr(Path, "exists", lambda path: next(seen, True) if path == out else exists(path))
    assert set(contents(out).values()) == {"second"}


def test_what_this_run_does_not_make_goes_with_the_last_one(tmp_path: Path) -> None:
    """A film of an earlier edit must not lie beside the pictures of this one."""
    for made in (("a.gif", "a.json", "a.mp4"), ("a.gif", "a.json")):
        with staged(tmp_path / "out", ("a.gif", "a.mp4", "a.json"), record="a.json") as stage:
            for name in made:
                (stage / name).write_text(name)
        assert sorted(contents(tmp_path / "out")) == sorted(made)


def test_a_folder_through_a_link_is_written_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with staged(tmp_path / "out") as stage:
        assert stage.resolve().parent == (tmp_path / "disk").resolve(), "nothing moves between file systems"
        fill(stage, "x")
    assert set(contents(tmp_path / "disk").values()) == {"x"}
