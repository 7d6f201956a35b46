"""Settings that hold for every test: offline, quiet, the same on a laptop and in CI."""

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before anything imports a hub client, which reads these once. Subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Beside other tests, a test has one core: networks on more threads than there are cores crawl.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# Help texts and tables come out the same whatever the terminal.
os.environ["COLUMNS"] = "120"
os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)

# Examples run real networks at tiny size: few of them, and no deadline on a busy machine.
# derandomize: CI draws the same examples every time, a laptop new ones.
settings.register_profile("laptop", deadline=None, max_examples=30)
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")


def _is_local(host: object) -> bool:
    """Whether `host`, as a socket call takes it, stays on this machine."""
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False  # a name that would have to be looked up


@pytest.fixture(scope="session")
def _attempts() -> Iterator[list[str]]:
    """Every attempt to leave this machine, each of which is refused."""
    attempts: list[str] = []

    def refuse(host: object) -> None:
        attempts.append(str(host))
        raise OSError(f"a test tried to reach {host!r}: tests run with no network")

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
                refuse(address[0])
            return connect(self, address)

        return call

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            refuse(host)
        return look_up(host, *args, **kwargs)

    look_up = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield attempts


@pytest.fixture(autouse=True)
def network_attempts(_attempts: list[str]) -> Iterator[list[str]]:
    """Fail a test that reached for the network, also where the code under test hid the error."""
    _attempts.clear()
    yield _attempts
    assert not _attempts, f"reached for the network: {', '.join(_attempts)}"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny checkpoint of a family by its name, as in tests.families; tests that damage one copy it."""
    from tests.families import checkpoint

    target = tmp_path_factory.mktemp("families")
    return cache(lambda name: checkpoint(name, target / name))
