"""`bld batch` as it is run: processes that are killed, workers that run out of memory, a Ctrl-C."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bld.apps.batch import command as batch_command
from bld.apps.batch.job import run
from bld.apps.batch.ledger import Ledger
from tests.apps.batches import Here, index, job, manifest, pictures, results, row, statuses
from tests.apps.conftest import Run

FLAGS = ["--steps", "2", "--candidates", "1", "--ranker", "none", "--device", "cpu"]
KILLS = 3


def start(rows: Path, output: Path, model: Path, *flags: str, **how: Any) -> "subprocess.Popen[str]":
    words = [
        sys.executable,
        "-m",
        "bld.apps.cli",
        "batch",
        str(rows),
        "--output",
        str(output),
        "--model",
        str(model),
    ]
    return subprocess.Popen(
        [*words, *FLAGS, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, **how,
    )  # fmt: skip


def folders(output: Path) -> set[str]:
    return {path.name for path in (output / "edits").glob("*")}


def wait_for_more(process: "subprocess.Popen[str]", output: Path) -> None:
    """Return once another edit is done, or the process."""
    before = folders(output)
    while process.poll() is None and folders(output) <= before:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def asked(worker: Here, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 24 rows, and beside it the results of a run in one process."""
    folder = tmp_path_factory.mktemp("asked")
    pictures(folder)
    alone = job(folder, [row(i) for i in range(24)], model, folder / "alone")
    run(alone, worker.at(alone.work), quiet=True)
    return folder


@pytest.mark.slow
def test_killed_again_and_again_it_gives_the_bytes_of_an_undisturbed_run(
    asked: Path, model: Path, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    moments, out, right = random.Random(seed), tmp_path / "out", results(asked / "alone")
    print(f"moments drawn from seed {seed}")
    done: dict[Path, int] = {}
    for kill in range(KILLS):
        with start(asked / "rows.jsonl", out, model, "--workers", "2") as process:
            if kill:
                wait_for_more(process, out)
            time.sleep(moments.uniform(0, 0.3 if kill else 6))
            os.killpg(process.pid, signal.SIGKILL if kill < KILLS - 1 else signal.SIGINT)
            said = process.communicate()[0]
        found = results(out) if out.exists() else {}
        assert found == {name: right[name] for name in found}, "half an edit has a name"
        assert len(found) == 5 * len(folders(out)), "a file is missing"
        if (out / "ledger.sqlite").exists():
            with Ledger(out / "ledger.sqlite") as ledger:
                assert {one.id for one in ledger.outcomes()} <= folders(out)
        done |= {path: path.stat().st_mtime_ns for path in (out / "edits").rglob("*.png")}
    assert (process.returncode, said.splitlines()[-1]) == (130, "bld: interrupted")
    with start(asked / "rows.jsonl", out, model, "--workers", "2") as process:
        wait_for_more(process, out)
        os.kill(a_worker(process), signal.SIGKILL)  # and one of its workers alone, which is replaced
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "24 done" in said
    assert results(out) == right
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done was done again"
    assert sorted(path.name for path in out.iterdir()) == ["edits", "index.parquet", "job", "ledger.sqlite"]
    again = [line for line in index(out) if line["tries"] > 1]
    assert len(again) <= 4
    assert {line["reason"] for line in again} <= {"tried again: worker killed by SIGKILL; out of memory?"}


def a_worker(process: "subprocess.Popen[str]") -> int:
    """The id of one of its workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())


@pytest.fixture
def limited() -> Iterator[Path]:
    """A control group of 1 GB: what takes more is killed by the kernel."""
    root = Path("/sys/fs/cgroup/memory")
    root = root if root.is_dir() else Path("/sys/fs/cgroup")
    group = root / f"bld-test-{uuid.uuid4().hex[:8]}"
    limit = "memory.limit_in_bytes" if root.name == "memory" else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(10**9))
    except OSError as error:
        pytest.skip(f"limiting memory is not permitted: {error}")
    yield group
    end = time.monotonic() + 30
    while True:  # the kernel may still be taking leave of what it killed
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@pytest.mark.slow
def test_a_row_that_takes_all_memory_fails_alone(
    asked: Path, model: Path, tmp_path: Path, limited: Path
) -> None:
    """The kernel kills its worker, alone and with its neighbours; they are edited without it."""
    pictures(tmp_path)
    for name, colour in (("huge", 99), ("all", 255)):
        Image.new("L", (7000, 7000), colour).save(tmp_path / f"{name}.png")
    path = manifest(tmp_path, [row(0), row(1, image="huge.png", mask="all.png"), row(2)])
    out = tmp_path / "out"
    join = lambda: (limited / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
    with start(path, out, model, "--workers", "1", "--retries", "0", preexec_fn=join) as process:
        said = process.communicate()[0]
    assert process.returncode == 1, said
    assert "1 rows failed: the index says why" in said
    assert statuses(out) == {"r00": "done", "r01": "failed", "r02": "done"}
    lines = index(out)
    assert (lines[1]["reason"], lines[1]["tries"]) == ("worker killed by SIGKILL; out of memory?", 2)


# --- what the command says ---


def test_bad_rows_are_lines_on_stderr(
    bld: Run, worker: Here, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path)
    monkeypatch.setattr(batch_command, "_pool", lambda asked, ray: nullcontext(worker.at(asked.work)))
    path = manifest(tmp_path, [row(0), row(1, steps=0), row(2, image="none.png")])
    words = ["batch", path, "--output", tmp_path / "out", "--model", model, *FLAGS]
    code, out, err = bld(*words)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0].startswith(f"{path}:2 (r01): --steps 0")
    assert lines[1].startswith(f"{path}:3 (r02): image {tmp_path / 'none.png'} does not exist")
    assert lines[2].startswith(f"bld: {path}: 2 of 3 rows cannot be edited")
    assert len(lines) == 3
    assert not (tmp_path / "out").exists()
    code, out, _ = bld(*words, "--skip-invalid", "--dry-run")
    assert (code, out) == (0, f"{path}  1 rows to edit, 2 to skip\n")
    code, out, _ = bld(*words, "--skip-invalid")
    assert (code, out) == (0, f"{tmp_path / 'out' / 'index.parquet'}  1 done, 2 invalid\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.jsonl"], "none.jsonl: cannot be read"),
        (["rows.jsonl", "--steps", "0"], "--steps 0"),
        (["rows.jsonl", "--shard", "3/2"], "--shard 3/2: expected I/N"),
        (["rows.jsonl", "--workers", "0"], "--workers 0: expected from 1"),
        (["rows.jsonl", "--model", "nowhere"], "unknown model nowhere"),
    ],
)
def test_bad_flags_are_one_line(
    bld: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path)
    manifest(tmp_path, [row(0)])
    code, out, err = bld("batch", *words)
    assert (code, out) == (2, "")
    assert err.startswith("bld: ")
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "batch").exists()
