"""Results that are fetched by URL: files under names nobody can guess, gone after their time."""

import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class _Result:
    path: Path
    media_type: str
    expires: float
    fetched: bool = False


class Results:
    """A temporary folder of results; it goes with the process."""

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._folder = tempfile.TemporaryDirectory(prefix="bld-results-")
        self._results: dict[str, _Result] = {}

    def keep(self, content: bytes, ending: str) -> str:
        """Keep a picture; returns the name it is fetched by, of 256 random bits."""
        self._expire()
        name = f"{secrets.token_urlsafe(32)}.{ending}"
        path = Path(self._folder.name) / name
        path.write_bytes(content)
        self._results[name] = _Result(path, f"image/{ending}", time.monotonic() + self._lifetime)
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
        """Whether somebody was given a URL and has not come yet."""
        self._expire()
        return any(not result.fetched for result in self._results.values())

    def close(self) -> None:
        """Delete them all."""
        self._results.clear()
        self._folder.cleanup()

    def _expire(self) -> None:
        now = time.monotonic()
        for name in [name for name, result in self._results.items() if result.expires < now]:
            self._results.pop(name).path.unlink(missing_ok=True)
