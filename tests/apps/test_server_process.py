"""`bld serve` as a process of its own: under load, under SIGTERM, and what it says of bad flags."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bld import Editor
from tests.apps.servers import HOLE, HOLED, PHOTO, encoded, pixels, until

IMAGE, MASK = encoded(PHOTO), encoded(HOLED)
RED = "a red apple"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "bld.apps.cli", "serve", *words]


@contextmanager
def serving(
    model: Path, log: Path, *words: str, keys: str = ""
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address and the process of `bld serve` with one thread, as its neighbours need the others."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BLD_API_KEYS": keys}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command("--model", str(model), "--port", "0", *words),
            stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
        ) as process,
    ):  # fmt: skip
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, log.read_text()
            yield url, process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def edit(client: openai.OpenAI, seed: int, **fields: Any) -> Any:
    """One edit by seed; the status where it is refused."""
    body = {"seed": seed, "steps": 2, "candidates": 1}
    try:
        return client.images.edit(image=IMAGE, mask=MASK, prompt=RED, extra_body=body, **fields)
    except openai.APIStatusError as error:
        return error.status_code


def memory(url: str) -> float:
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory_bytes"))


def test_two_hundred_requests_of_sixteen_clients(model: Path, tmp_path: Path) -> None:
    """Every accepted one is answered right, every refused one gets 429, the server stays healthy."""
    seeds = [number % 5 for number in range(200)]
    editor = Editor.from_pretrained(str(model), device="cpu")
    right = {
        seed: editor.edit(PHOTO, HOLE, RED, seed=seed, steps=2, candidates=1).best.photograph.pixels
        for seed in set(seeds)
    }
    with (
        serving(model, tmp_path / "log", "--queue", "8") as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        ThreadPoolExecutor(16) as clients,
    ):
        list(clients.map(lambda seed: edit(client, seed), range(16)))  # buffers and pools grow at first
        before = memory(url)
        stop, health = threading.Event(), []

        def watch() -> None:
            while not stop.wait(0.02):
                health.append(httpx2.get(f"{url}/healthz", timeout=10).status_code)

        watcher = threading.Thread(target=watch)
        watcher.start()
        answers = list(clients.map(lambda seed: edit(client, seed), seeds))
        stop.set()
        watcher.join()
        after = memory(url)
    accepted = [(seed, answer) for seed, answer in zip(seeds, answers, strict=True) if answer != 429]
    assert len(accepted) >= 8, "the queue alone holds that many"
    for seed, answer in accepted:
        # Another thread count, another order of summation: a level of 255 at most.
        found = pixels(base64.b64decode(answer.data[0].b64_json)).astype(int)
        assert abs(found - right[seed]).max() <= 1
        np.testing.assert_array_equal(found[~HOLE], PHOTO[~HOLE])
    assert len(health) > 5
    assert set(health) == {200}
    # Two hundred answers of 40 kB each would be 8 MB if they were kept, and their tensors far more.
    assert after - before < 30e6


def test_sigterm_under_load_loses_nothing_that_was_accepted(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        serving(model, log, "--queue", "100", keys="mine yours") as (url, process),
        openai.OpenAI(base_url=f"{url}/v1", api_key="yours", max_retries=0) as client,
        ThreadPoolExecutor(24) as clients,
    ):
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        first = edit(client, 0)
        done = threading.Semaphore(0)

        def one(seed: int) -> Any:
            try:
                return edit(client, seed, response_format="url")
            except openai.APIConnectionError:
                return "not accepted: nobody listens any more"
            finally:
                done.release()

        def fetched(answer: Any) -> bool:
            return isinstance(answer, int | str) or httpx2.get(answer.data[0].url).status_code == 200

        waiting = [clients.submit(lambda seed: fetched(one(seed)), seed) for seed in range(24)]
        assert done.acquire(timeout=60)
        process.send_signal(signal.SIGTERM)
        assert all(future.result(60) for future in waiting)
        assert first.data
        assert process.wait(60) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    statuses = [line["status"] for line in lines if line.get("path") == "/v1/images/edits"]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 20, "those that waited were done, not dropped"
    edits = [line for line in lines if line.get("path") == "/v1/images/edits"]
    assert {"request_id", "seconds", "method", "level", "time"} <= set(edits[0])


def test_a_second_signal_stops_it_at_once_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    hours = {"seed": 0, "steps": 1000, "candidates": 256}
    with (
        serving(model, tmp_path / "log") as (url, process),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
        ThreadPoolExecutor(1) as clients,
    ):
        kept = client.images.edit(
            image=IMAGE, mask=MASK, prompt=RED, extra_body={"steps": 1}, response_format="url"
        )
        asked = clients.submit(
            client.images.edit, image=IMAGE, mask=MASK, prompt=RED, stream=True, extra_body=hours
        )
        until(lambda: "bld_edits_running 1.0" in httpx2.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx2.get(f"{url}/readyz").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130
        with pytest.raises(openai.APIConnectionError):
            asked.result(20)
    assert kept.data
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port", "1", "--host", "203.0.113.7"], "cannot listen on 203.0.113.7:1"),
        (["--model", "nowhere"], "unknown model nowhere"),
        (["--alias", "gpt-image-1"], "expected NAME=MODEL"),
        (["--alias", "gpt-image-1=sdxl"], "it is not served"),
        (["--port", "70000"], "less than or equal to 65535"),
        (["--ray", "local", "--port", "0"], "Ray Serve does not say which one it took"),
    ],
)
def test_bad_flags_are_one_line(model: Path, words: list[str], says: str) -> None:
    given = words if "--model" in words else ["--model", str(model), *words]
    done = subprocess.run(command(*given), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# --- whatever is sent ---

SCHEMA = schemathesis.openapi.from_path(Path(__file__).parents[2] / "docs/openapi.json")
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations()]
# That valid data is accepted is not asked: to the schema any bytes are a picture.
CHECKS = [
    schemathesis.checks.not_a_server_error, schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance, schemathesis.checks.response_schema_conformance,
]  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[str]:
    with serving(model, tmp_path_factory.mktemp("log") / "log", "--timeout", "20") as (url, _):
        yield url


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_answers_are_as_described(operation: Any, address: str, data: st.DataObject) -> None:
    case = data.draw(operation.as_strategy())
    case.call_and_validate(base_url=address, checks=CHECKS)
