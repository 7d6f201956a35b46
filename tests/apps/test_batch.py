"""A job from its manifest to its index, in one process."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bld import EditOptions, Editor
from bld.apps.batch import job as jobs
from bld.apps.batch.job import Tally, Unfit, check, edited, run
from bld.apps.batch.ledger import Ledger, Outcome
from bld.apps.batch.manifest import read, seed_of
from bld.apps.batch.plan import units
from bld.apps.batch.run import Died
from bld.apps.batch.work import Reading
from bld.errors import BldError, InvalidInput
from tests.apps.batches import Here, index, job, manifest, pictures, results, row, statuses


def same_rows(undisturbed: Path, model: Path, output: Path, **batch: Any) -> jobs.Job:
    """The job of `undisturbed` once more, into another folder."""
    return job(undisturbed, undisturbed / "rows.jsonl", model, output, **batch)


# --- what it leaves ---


def test_every_row_has_the_folder_of_an_edit_and_a_line_in_the_index(undisturbed: Path, model: Path) -> None:
    out = undisturbed / "out"
    assert sorted(path.name for path in out.iterdir()) == ["edits", "index.parquet", "job", "ledger.sqlite"]
    assert sorted(path.name for path in (out / "edits").iterdir()) == [f"r{i:02d}" for i in range(10)]
    lines = index(out)
    assert [line["number"] for line in lines] == list(range(10))
    assert {line["status"] for line in lines} == {"done"}
    for line in lines:
        assert (out / line["result"]).is_file()
        facts = json.loads((out / "edits" / line["id"] / "edit.json").read_text())
        assert facts["request"]["seed"] == line["seed"] == seed_of(line["id"])
        assert facts["request"]["prompt"] == line["prompt"]
        assert line["background_max_error"] == 0


def test_a_row_is_what_an_edit_of_its_own_gives(undisturbed: Path, model: Path) -> None:
    """But for rounding: the batches are others."""
    editor = Editor.from_pretrained(str(model), ranker="none", device="cpu")
    for line in index(undisturbed / "out")[:4]:
        options = EditOptions(steps=2, candidates=1, seed=line["seed"])
        alone = editor.edit(line["image"], line["mask"], line["prompt"], options=options)
        with Image.open(undisturbed / "out" / line["result"]) as picture:
            off = np.asarray(picture).astype(int) - np.asarray(alone.best.image)
        assert abs(off).max() <= 1


def test_rows_that_agree_share_batches(worker: Here, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pictures(tmp_path)
    sizes = []
    network = worker.worker.editor.model.network  # type: ignore[attr-defined]

    def counted(z: Any, *rest: Any) -> Any:
        sizes.append(len(z))
        return network(z, *rest)

    monkeypatch.setattr(worker.worker.editor.model, "network", counted)
    rows = [*(row(i) for i in range(4)), row(4, steps=3), row(5, candidates=5)]
    asked = job(tmp_path, rows, model, tmp_path / "out")
    run(asked, worker.at(asked.work))
    # Guidance doubles them: four rows in two steps; one in three steps; five candidates in two steps.
    assert sorted(sizes) == sorted([8, 8] + [2] * 3 + [10, 10])


# --- going on ---


def test_what_is_done_is_not_done_again(undisturbed: Path, worker: Here, model: Path, tmp_path: Path) -> None:
    asked = same_rows(undisturbed, model, tmp_path / "out", limit=5)
    assert run(asked, worker.at(asked.work)) == Tally(4, 0, 0, 6)
    assert list(statuses(tmp_path / "out").values()).count("pending") == 6
    first = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "edits").rglob("*.png")}
    asked = same_rows(undisturbed, model, tmp_path / "out")
    assert run(asked, worker.at(asked.work)) == Tally(10, 0, 0, 0)
    assert sum(map(len, worker.units)) == 6
    assert {p: p.stat().st_mtime_ns for p in first} == first
    assert results(tmp_path / "out") == results(undisturbed / "out")
    assert run(asked, worker.at(asked.work)) == Tally(10, 0, 0, 0)
    assert worker.units == []


def test_parts_together_are_the_whole(undisturbed: Path, worker: Here, model: Path, tmp_path: Path) -> None:
    for i in (1, 2):
        asked = same_rows(undisturbed, model, tmp_path / "out", shard=f"{i}/2")
        run(asked, worker.at(asked.work))
    assert results(tmp_path / "out") == results(undisturbed / "out")
    parts = [statuses(tmp_path / "out", f"index-{i}-of-2.parquet") for i in (1, 2)]
    assert [len(one) for one in parts] == [4, 6]
    assert {**parts[0], **parts[1]} == statuses(undisturbed / "out")


def test_what_one_part_cannot_reach_for_a_moment_moves_no_row_to_another(
    worker: Here, model: Path, tmp_path: Path
) -> None:
    pictures(tmp_path, 8)
    rows = [row(i, image=f"photo{i}.png", mask="mask0.png", batch_size=1) for i in range(8)]

    def part(i: int, **batch: Any) -> tuple[Tally, dict[str, str]]:
        asked = job(tmp_path, rows, model, tmp_path / "out", shard=f"{i}/2", **batch)
        return run(asked, worker.at(asked.work)), statuses(tmp_path / "out", f"index-{i}-of-2.parquet")

    first = part(1)
    (tmp_path / "photo6.png").rename(tmp_path / "away")
    assert part(2, skip_invalid=True)[0] == Tally(3, 0, 1, 0)
    (tmp_path / "away").rename(tmp_path / "photo6.png")
    assert part(2)[0] == Tally(3, 0, 1, 0), "what it begins with holds to its end"
    tally, second = part(2, retry_failed=True)
    assert tally == Tally(4, 0, 0, 0)
    assert part(1, retry_failed=True) == first
    assert [*first[1], *second] == [one["id"] for one in rows]


@pytest.mark.parametrize("shard", ["1/1", "2/3"])
@pytest.mark.parametrize("change", ["manifest", "options", "threads", "loading"])
def test_another_job_is_refused_in_its_folder(
    undisturbed: Path, worker: Here, model: Path, tmp_path: Path, change: str, shard: str
) -> None:
    """By every part of it, though each has a ledger of its own."""
    shutil.copytree(undisturbed / "out", tmp_path / "out")
    asked = same_rows(undisturbed, model, tmp_path / "out", shard=shard)
    if change == "manifest":
        pictures(tmp_path)
        asked = replace(asked, manifest=manifest(tmp_path, [row(0)]))
    elif change == "options":
        asked = replace(asked, common={**asked.common, "steps": 3})
    elif change == "threads":
        asked = replace(asked, work=replace(asked.work, threads=2))
    else:
        loading = replace(asked.work.loading, vae_tiling=True)
        asked = replace(asked, work=replace(asked.work, loading=loading))
    with pytest.raises(InvalidInput, match=f"begun with other {change}"):
        run(asked, worker.at(asked.work))
    assert results(tmp_path / "out") == results(undisturbed / "out")
    assert len(list((tmp_path / "out").iterdir())) == 4, "it has left nothing of its own"


def test_what_dtype_auto_comes_to_is_a_fact_of_the_job(worker: Here, model: Path, tmp_path: Path) -> None:
    """float32 on a CPU, half precision elsewhere."""
    asked = job(tmp_path, [row(0)], model, tmp_path / "out")
    facts = asked.facts(worker.at(asked.work).worker.read([]))  # type: ignore[union-attr]
    assert facts["loading"]["dtype"] == "auto on cpu"
    assert {"vae", "vae_tiling", "config", "compile"} < set(facts["loading"])
    assert "device" not in facts["loading"]


def test_of_parts_that_begin_at_once_one_says_what_the_job_is(model: Path, tmp_path: Path) -> None:
    manifests = [manifest(tmp_path, [row(i)], f"rows{i}.jsonl") for i in range(8)]
    every = [job(tmp_path, one, model, tmp_path / "out") for one in manifests]
    together = threading.Barrier(len(every))

    def begin(one: jobs.Job) -> str:
        together.wait()
        try:
            jobs.take_folder(one, one.facts(Reading({"model": "1"}, {}, {})))
        except InvalidInput as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(every)) as threads:
        taken, *refused = sorted(threads.map(begin, every))
    assert not taken
    assert all("begun with other manifest" in one for one in refused)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["job"]


def test_a_foreign_folder_is_left_alone(worker: Here, model: Path, tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "out" / "edits" / "r00").mkdir(parents=True)
    asked = job(tmp_path, [row(0)], model, tmp_path / "out")
    with pytest.raises(InvalidInput, match="edits is there, but no job"):
        run(asked, worker.at(asked.work))


# --- rows that cannot be edited ---


def test_bad_rows_are_all_named_before_anything_is_written(worker: Here, model: Path, tmp_path: Path) -> None:
    pictures(tmp_path)
    rows = [
        row(0), row(1, steps=0), row(2, image="none.png"), row(3, prompt="a guitar " * 40),
        row(4, prompt="a guitar " * 40, truncate_prompt=True), row(5, negative_prompt="grey " * 90),
        row(6, guidance_start=0.9, guidance_end=0.1),
    ]  # fmt: skip
    asked = job(tmp_path, rows, model, tmp_path / "out")
    with pytest.raises(Unfit, match="5 of 7 rows cannot be edited") as caught:
        run(asked, worker.at(asked.work))
    assert [(one.line, one.id) for one in caught.value.refusals] == [
        (2, "r01"), (3, "r02"), (4, "r03"), (6, "r05"), (7, "r06"),
    ]  # fmt: skip
    assert "the negative prompt is longer than" in caught.value.refusals[3].reason
    assert "is after --guidance-end" in caught.value.refusals[4].reason
    assert not (tmp_path / "out").exists()
    asked = job(tmp_path, rows, model, tmp_path / "out", skip_invalid=True)
    assert check(asked, worker.at(asked.work)) == Tally(0, 0, 5, 2)
    assert not (tmp_path / "out").exists()
    assert run(asked, worker.at(asked.work)) == Tally(2, 0, 5, 0)
    assert list(statuses(tmp_path / "out").values()) == [
        "done", "invalid", "invalid", "invalid", "done", "invalid", "invalid",
    ]  # fmt: skip
    (tmp_path / "none.png").write_bytes((tmp_path / "photo0.png").read_bytes())
    assert run(asked, worker.at(asked.work)) == Tally(2, 0, 5, 0), "what it begins with holds to its end"
    asked = job(tmp_path, rows, model, tmp_path / "out", retry_failed=True)
    assert run(asked, worker.at(asked.work)) == Tally(3, 0, 4, 0)
    assert worker.units == [("r02",)]


def test_a_dry_run_reads_prompts_without_the_models_weights(model: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(model, copy)
    for weights in copy.rglob("*.safetensors"):
        weights.unlink()
    pictures(tmp_path)
    asked = job(tmp_path, [row(0), row(1, prompt="a cat " * 600)], copy, out)
    with pytest.raises(Unfit) as caught:
        check(asked, Here(replace(asked.work, dry_run=True)))
    (refusal,) = caught.value.refusals
    assert (refusal.line, "the prompt is longer than" in refusal.reason) == (2, True)


def test_a_row_that_fails_does_so_alone(worker: Here, model: Path, tmp_path: Path) -> None:
    """A photograph that is cut short passes a look at its head."""
    pictures(tmp_path)
    whole = (tmp_path / "photo0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (96, 80)).save(tmp_path / "black.png")
    rows = [row(0), row(1, image="cut.png"), row(2), row(3, mask="black.png")]
    asked = job(tmp_path, rows, model, tmp_path / "out")
    assert run(asked, worker.at(asked.work)) == Tally(2, 2, 0, 0)
    lines = {line["id"]: line for line in index(tmp_path / "out")}
    assert "cut.png is damaged or cut short" in lines["r01"]["reason"]
    assert "the mask is empty" in lines["r03"]["reason"]
    assert sorted(path.name for path in (tmp_path / "out" / "edits").iterdir()) == ["r00", "r02"]
    run(asked, worker.at(asked.work))
    assert worker.units == [], "failed is failed"
    (tmp_path / "cut.png").write_bytes(whole)
    asked = job(tmp_path, rows, model, tmp_path / "out", retry_failed=True)
    assert run(asked, worker.at(asked.work)) == Tally(3, 1, 0, 0)
    assert sorted(worker.units) == [("r01",), ("r03",)]


def test_a_batch_that_fails_is_run_row_by_row(
    worker: Here, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path)
    together = Editor.edit_together

    def short_of_memory(self: Editor, tasks: Any) -> Any:
        if len(tasks) > 1 or tasks[0].prompt == "poison":
            raise BldError("not enough memory")
        return together(self, tasks)

    monkeypatch.setattr(Editor, "edit_together", short_of_memory)
    asked = job(tmp_path, [row(0), row(1, prompt="poison"), row(2)], model, tmp_path / "out")
    assert run(asked, worker.at(asked.work)) == Tally(2, 1, 0, 0)
    assert index(tmp_path / "out")[1]["reason"] == "not enough memory"


def test_a_picture_that_goes_while_it_is_edited_fails_its_row(
    worker: Here, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path)
    together = Editor.edit_together

    def meanwhile(self: Editor, tasks: Any) -> Any:
        (tmp_path / "photo1.png").unlink(missing_ok=True)
        return together(self, tasks)

    monkeypatch.setattr(Editor, "edit_together", meanwhile)
    asked = job(tmp_path, [row(0), row(1), row(2)], model, tmp_path / "out")
    assert run(asked, worker.at(asked.work)) == Tally(2, 1, 0, 0)
    reason = index(tmp_path / "out")[1]["reason"]
    assert "photo1.png" in reason
    assert "went while it was edited" in reason


# --- workers that die ---


class Dying:
    """A pool whose workers die over a unit with some rows in it."""

    def __init__(self, rows: set[str], times: int = 10**6) -> None:
        self.rows, self.times, self.given = rows, times, []  # type: ignore[var-annotated]

    def map(self, method: str, arguments: Any) -> Iterator[tuple[int, Any]]:
        for place, unit in enumerate(arguments):
            self.given.append("".join(one.id[-1] for one in unit))
            if self.times and self.rows & {one.id for one in unit}:
                self.times -= 1
                yield place, Died("killed")
            else:
                yield place, [Outcome(number=one.number, id=one.id, status="done") for one in unit]


def test_a_poisoned_row_fails_alone(tmp_path: Path) -> None:
    rows, _ = read(manifest(tmp_path, [row(i) for i in range(6)]))
    pool = Dying({"r01"})
    every = units(rows, {"candidates": 1})
    found = {one.id: one for some in edited(pool, every, retries=1) for one in some}
    assert len(every) == 2
    assert {id for id, one in found.items() if one.status == "failed"} == {"r01"}
    assert (found["r01"].tries, found["r01"].reason) == (4, "killed")
    poisoned = next(given for given in pool.given if "1" in given)
    assert [given for given in pool.given if "1" in given] == [poisoned] * 2 + ["1"] * 2
    assert sorted(given for given in pool.given if len(given) == 1 and given != "1") == sorted(
        set(poisoned) - {"1"}
    )


def test_a_worker_that_died_once_costs_a_try(tmp_path: Path) -> None:
    rows, _ = read(manifest(tmp_path, [row(i) for i in range(6)]))
    pool = Dying({"r01"}, times=1)
    found = {one.id: one for some in edited(pool, units(rows, {"candidates": 1}), 2) for one in some}
    assert {one.status for one in found.values()} == {"done"}
    assert (found["r01"].tries, found["r01"].reason) == (2, "tried again: killed")
    assert min(one.tries for one in found.values()) == 1


# --- the disk ---


def test_a_folder_has_its_name_when_it_is_on_the_disk_and_the_ledger_comes_last(
    worker: Here, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path)
    asked = job(tmp_path, [row(0)], model, tmp_path / "out")
    events: list[tuple[str, str]] = []
    fsync, rename, record = os.fsync, Path.rename, Ledger.record

    def synced(descriptor: int) -> None:
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        events.append(("rename", str(target)))
        return rename(self, target)

    def recorded(self: Ledger, outcomes: Any) -> None:
        events.append(("record", ""))
        record(self, outcomes)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Ledger, "record", recorded)
    run(asked, worker.at(asked.work))
    folder = str(tmp_path / "out" / "edits" / "r00")
    named = events.index(("rename", folder))
    stage = (
        next(path for what, path in events[:named] if "/.stage/" in path).split("/.stage/")[1].split("/")[0]
    )
    staged = {
        path.split(stage)[1] for what, path in events[:named] if stage in path and "tmp" not in path[-4:]
    }
    there = {str(path).removeprefix(folder) for path in (Path(folder), *Path(folder).rglob("*"))}
    assert staged == there, "something was not on the disk before the folder had its name"
    assert named < events.index(("sync", str(Path(folder).parent))) < events.index(("record", ""))


@pytest.fixture
def small_disk(tmp_path: Path, undisturbed: Path) -> Iterator[Path]:
    """A file system with room for about half of the results of `undisturbed`."""
    size = sum(path.stat().st_size for path in (undisturbed / "out").rglob("*")) * 6 // 10
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(
    undisturbed: Path, worker: Here, model: Path, small_disk: Path
) -> None:
    asked = same_rows(undisturbed, model, small_disk / "out")
    right = results(undisturbed / "out")
    with pytest.raises(BldError, match=r"cannot be written .* make room and run the same command again"):
        run(asked, worker.at(asked.work))
    with Ledger(asked.ledger) as ledger:
        recorded = {one.id for one in ledger.outcomes()}
    found = results(small_disk / "out")
    assert recorded
    assert {name.split("/")[0] for name in found} >= recorded
    assert found == {name: right[name] for name in found}, "half an edit has a name"
    with pytest.raises(BldError, match="cannot be written"):
        run(asked, worker.at(asked.work))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert run(asked, worker.at(asked.work)) == Tally(10, 0, 0, 0)
    assert results(small_disk / "out") == right
