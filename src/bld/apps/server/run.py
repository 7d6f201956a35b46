"""The server's life: models first, then the socket; on SIGTERM nothing new, and everything accepted done."""

import asyncio
import dataclasses
import logging
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import typer
import uvicorn
from fastapi import FastAPI

from bld.apps.progress import quiet_libraries
from bld.apps.server.app import create_app, served
from bld.apps.server.gate import JsonLines
from bld.apps.server.service import Service
from bld.apps.server.settings import Settings
from bld.editor import Editor
from bld.errors import InvalidInput
from bld.options import LoadOptions


class Server(uvicorn.Server):
    """Drains on the first signal, while health, metrics and results are still served; stops on the second."""

    def __init__(self, app: FastAPI) -> None:
        self.service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                served(app), log_config=None, access_log=False, server_header=False,
                timeout_graceful_shutdown=math.ceil(self.service.settings.answer_timeout),
            )
        )  # fmt: skip
        self._draining, self.interrupted = False, False
        self.servers = []  # until it has started

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: drain first, and hang up on everyone if another comes."""
        if self._draining:
            self.interrupted = self.should_exit = True
            for server in self.servers:
                server.get_loop().call_soon_threadsafe(self._hang_up)
            return
        self._draining = True
        threading.Thread(target=self._drain, daemon=True).start()

    def _hang_up(self) -> None:
        """Leave nobody to wait for; edits end within a step, as those of any client that is gone."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for answers to be taken, and hang up on who takes them too slowly."""
        await super().shutdown(sockets)
        self._hang_up()

    def _drain(self) -> None:
        """Stop once nothing is in work, and no URL waits to be fetched or its time is over."""
        self.service.jobs.close()
        while not self.service.drained():
            time.sleep(0.02)
        end = time.monotonic() + self.service.settings.drain
        while time.monotonic() < end and self.service.results.unfetched():
            time.sleep(0.02)
        self.should_exit = True


def run(names: Sequence[str], loading: LoadOptions, settings: Settings, *, host: str, port: int) -> None:
    """Load, listen, print the address, serve until a signal comes.

    Raises KeyboardInterrupt where a second one came before all that was accepted was done.
    """
    with _bound(host, port) as listener:  # or it says so before the models are loaded
        quiet_libraries()
        devices = [dataclasses.replace(loading, device=device) for device in loading.device.split(",")]
        editors = [{name: Editor.from_pretrained(name, options=one) for name in names} for one in devices]
        app = create_app(editors, settings)
        _log_as_json()
        listener.listen()
        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        typer.echo(f"http://{shown}:{address[1]}")
        server = Server(app)
        asyncio.run(server.serve([listener]))
        if server.interrupted:
            raise KeyboardInterrupt


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket of that address. Raises InvalidInput where that is not possible."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidInput(f"cannot listen on {host}:{port}: {error.strerror}; choose another") from error
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as error:
            raise InvalidInput(f"cannot listen on {host}:{port}: {error.strerror}; choose another") from error
        yield listener
