"""The same job on Ray: a real cluster of several nodes, one of which is killed in the middle."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bld.apps.batch.job import run
from tests.apps.batches import Here, index, job, pictures, results, row

pytest.importorskip("ray")
FLAGS = ["--steps", "2", "--candidates", "1", "--ranker", "none", "--device", "cpu"]
PATIENCE = 300  # s


@pytest.fixture
def cluster() -> "Iterator[subprocess.Popen[str]]":
    """See tests.apps.ray_nodes. Its address is its first line."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.apps.ray_nodes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_gives_the_bytes_of_one_process(
    worker: Here, model: Path, tmp_path: Path, cluster: "subprocess.Popen[str]"
) -> None:
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    pictures(tmp_path)
    # So many steps that both nodes are in work before the first eight edits are done.
    alone = job(tmp_path, [row(i, steps=40) for i in range(48)], model, tmp_path / "alone")
    run(alone, worker.at(alone.work), quiet=True)
    address = cluster.stdout.readline().strip()
    words = ["batch", "rows.jsonl", "--output", "out", "--model", str(model), "--ray", address, *FLAGS]
    with subprocess.Popen(
        [sys.executable, "-m", "bld.apps.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=tmp_path,
    ) as driver:  # fmt: skip
        end = time.monotonic() + PATIENCE
        while len(list((tmp_path / "out" / "edits").glob("*"))) < 8:
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.02)
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "gone\n"
        left = 48 - len(list((tmp_path / "out" / "edits").glob("*")))
        said = driver.communicate(timeout=PATIENCE)[0]
    assert driver.returncode == 0, said
    assert left > 8, "it was nearly done when the node went"
    assert results(tmp_path / "out") == results(tmp_path / "alone")
    lines = index(tmp_path / "out")
    assert [line["id"] for line in lines] == [f"r{i:02d}" for i in range(48)]
    assert {line["status"] for line in lines} == {"done"}
    again = [line for line in lines if line["tries"] > 1]
    assert len(again) == 4, "the unit that the lost node had in work"
    assert all("tried again: " in line["reason"] for line in again)
