"""`bld serve --ray`: the same answers, from replicas."""

import base64
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from bld import EditOptions, Editor
from tests.apps.servers import HOLED, PHOTO, encoded, pixels

pytest.importorskip("ray")


@pytest.mark.slow
def test_replicas_answer_the_official_client_as_one_server_does(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "--ray", "local", "--replicas", "2", "--model", str(model), "--device", "cpu", "--port"]
    with (
        subprocess.Popen(
            [sys.executable, "-m", "bld.apps.cli", *words, str(port)], stdout=subprocess.PIPE, text=True
        ) as process,
        ExitStack() as stack,
    ):
        stack.callback(process.terminate)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def edit(seed: int, steps: int = 2, **more: Any) -> Any:
            return client.images.edit(
                image=encoded(PHOTO), mask=encoded(HOLED), prompt="a red apple",
                extra_body={"seed": seed, "steps": steps, "candidates": 1}, **more,
            )  # fmt: skip

        with client, ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(edit, range(4)))
            with pytest.raises(openai.BadRequestError) as refused:
                edit(0, response_format="url")
            assert [one.id for one in client.models.list()] == [str(model)]
            assert refused.value.param == "response_format"
            assert httpx2.get(f"{url}/readyz").status_code == 200
            events = iter(edit(4, steps=1000, stream=True, partial_images=1))
            assert next(events).type == "image_edit.partial_image"
            process.send_signal(signal.SIGTERM)
            assert [event.type for event in events] == ["image_edit.completed"], "what was accepted is done"
        assert process.wait(60) == 0
    editor = Editor.from_pretrained(str(model), device="cpu")
    for seed, answer in enumerate(answers):
        assert answer.data
        right = editor.edit(
            PHOTO, encoded(HOLED), "a red apple",
            options=EditOptions(seed=seed, steps=2, candidates=1, mask_mode="transparency"),
        )  # fmt: skip
        found = pixels(base64.b64decode(answer.data[0].b64_json or ""))
        assert abs(found.astype(int) - np.asarray(right.best.image)).max() <= 1  # another thread count
