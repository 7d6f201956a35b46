"""Results that are fetched by URL: files under names nobody can guess, gone after their time."""

import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MOST = 2**30  # bytes kept at a time


@dataclass
class _Result:
    path: Path
    size: int
    media_type: str
    expires: float
    fetched: bool = False


class Results:
    """A temporary folder of results; it goes with the process.

    lifetime: seconds that one is kept for. most: bytes of all of them; the oldest go before their time
    where a new one needs the room.
    """

    def __init__(self, lifetime: float, most: int = MOST) -> None:
        self._lifetime, self._most = lifetime, most
        self._folder = tempfile.TemporaryDirectory(prefix="bld-results-")
        self._results: dict[str, _Result] = {}

    def keep(self, content: bytes, ending: str) -> str:
        """Keep a picture; returns the name it is fetched by, of 256 random bits."""
        self._expire()
        self._make_room(len(content))
        name = f"{secrets.token_urlsafe(32)}.{ending}"
        path = Path(self._folder.name) / name
        try:
            path.write_bytes(content)
        except OSError:  # the disk is full, and half of it would stay
            path.unlink(missing_ok=True)
            raise
        self._results[name] = _Result(
            path, len(content), f"image/{ending}", time.monotonic() + self._lifetime
        )
        return name

    def find(self, name: str) -> tuple[Path, str] | None:
        """Where a result lies and its media type; None if there is none of that name any more."""
        self._expire()
        result = self._results.get(name)  # a name from outside never touches the file system
        if result is None:
            return None
        result.fetched = True
        return result.path, result.media_type

    def unfetched(self) -> bool:
        """Whether somebody was given a URL that is good, and has not come yet. Any thread may ask."""
        now = time.monotonic()
        return any(not one.fetched and one.expires >= now for one in tuple(self._results.values()))

    def close(self) -> None:
        """Delete them all."""
        self._results.clear()
        self._folder.cleanup()

    def _expire(self) -> None:
        now = time.monotonic()
        for name in [name for name, result in self._results.items() if result.expires < now]:
            self._drop(name)

    def _make_room(self, size: int) -> None:
        while self._results and sum(one.size for one in self._results.values()) + size > self._most:
            self._drop(next(iter(self._results)))  # the oldest

    def _drop(self, name: str) -> None:
        self._results.pop(name).path.unlink(missing_ok=True)
