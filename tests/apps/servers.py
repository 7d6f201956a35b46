"""A server in a thread, and pictures to send to it."""

import asyncio
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import openai
from PIL import Image

from bld import Editor
from bld.apps.server.app import create_app
from bld.apps.server.run import Server
from bld.apps.server.settings import Settings
from tests.tiny import GatedModel

Array = npt.NDArray[Any]
PHOTO = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
HOLE = np.zeros(PHOTO.shape[:2], bool)
HOLE[20:60, 30:80] = True
HOLED = np.dstack([PHOTO, np.where(HOLE, 0, 255).astype(np.uint8)])
DEADLINE = 30  # s, for what takes a fraction of one


def encoded(pixels: Array, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels(content: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(content)))


class BrightestRed:
    """A ranker whose order is known: how red a picture is."""

    name, revision = "red", "1"

    def score(self, picture: Array, prompt: str) -> float:
        return float(picture[..., 0].mean())


class Running:
    """A server that runs in a thread, and clients of it."""

    def __init__(self, url: str, model: GatedModel, server: Server, thread: threading.Thread) -> None:
        self.url, self.model, self.server, self.thread = url, model, server, thread
        self.service = server.service
        self._clients: list[openai.OpenAI] = []

    def openai(self, **options: Any) -> openai.OpenAI:
        """The official client, closed with the server."""
        settings = {"api_key": "none", "max_retries": 0, "timeout": DEADLINE, **options}
        self._clients.append(openai.OpenAI(base_url=f"{self.url}/v1", **settings))
        return self._clients[-1]

    def close_clients(self) -> None:
        for client in self._clients:
            client.close()

    def http(self) -> httpx2.Client:
        """A client for what the official one would not send."""
        return httpx2.Client(base_url=self.url, timeout=DEADLINE)

    def wait_for_step(self) -> None:
        """Return once a step has begun."""
        until(lambda: self.model.begun)

    def idle(self) -> bool:
        return self.service.jobs.drained()


@contextmanager
def running(open_gate: bool = True, **settings: Any) -> Iterator[Running]:
    """Serve a gated exact model as "gaussian", ranked by redness."""
    model = GatedModel()
    if open_gate:
        model.let()
    app = create_app([{"gaussian": Editor(model, BrightestRed())}], Settings(**settings))
    server, sock = Server(app), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
    thread.start()
    until(lambda: server.started)
    found = Running(f"http://127.0.0.1:{sock.getsockname()[1]}", model, server, thread)
    try:
        yield found
    finally:
        found.close_clients()
        model.let()
        server.should_exit = True
        thread.join(DEADLINE)
        assert not thread.is_alive(), "the server did not stop"


def until(condition: Callable[[], Any]) -> None:
    """Wait for something that is about to be."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.005)
