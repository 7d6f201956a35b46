"""What a manifest may name, local paths and URLs, and how that is read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bld.errors import InvalidInput, MissingExtra

STORES = ("s3", "gs", "gcs", "az", "abfs")  # fsspec's names; their credentials are the environment's
WEB = ("http", "https")
_WEB_URL = re.compile(r"https?://([A-Za-z0-9.-]+)(:\d+)?/[!-\[\]-~]*")  # no user, no backslash, no blank


def scheme(place: str) -> str:
    """What stands before "://"; "" for a local path."""
    return place.partition("://")[0] if "://" in place else ""


@dataclass(frozen=True)
class Files:
    """Files by path or URL. hosts: those that http and https URLs may name; redirects are not followed."""

    hosts: Sequence[str] = ()

    def refuse(self, place: str, what: str) -> None:
        """Raise InvalidInput for a URL that may not be read; nothing is asked of the network."""
        kind = scheme(place)
        if kind in WEB:
            found = _WEB_URL.fullmatch(place)
            if not found:
                raise InvalidInput(f"{what} {place}: not a URL of the form {kind}://host/path")
            if found[1].lower() not in self.hosts:
                raise InvalidInput(
                    f"{what} {place}: allow its host with --allow-host {found[1].lower()}, or copy the file"
                )
        elif kind and kind not in STORES:
            known = ", ".join((*STORES, *WEB))
            raise InvalidInput(f"{what} {place}: {kind}:// is not read; expected a path or one of {known}")

    def read(self, place: str, what: str) -> bytes:
        """The bytes behind a path or URL. Raises InvalidInput if there are none."""
        self.refuse(place, what)
        try:
            if not scheme(place):
                return Path(place).read_bytes()
            content: bytes = self._system(place).cat_file(place)
        except (MissingExtra, InvalidInput):
            raise
        except Exception as error:  # of fsspec and its clients, of many kinds
            raise InvalidInput(f"{what} {place}: cannot be read ({_reason(error)})") from error
        return content

    def refuse_missing(self, place: str, what: str) -> None:
        """Raise InvalidInput unless something that is not empty lies behind a URL."""
        self.refuse(place, what)
        try:
            size = self._system(place).info(place).get("size")
        except (MissingExtra, InvalidInput):
            raise
        except Exception as error:
            raise InvalidInput(f"{what} {place}: cannot be read ({_reason(error)})") from error
        if size == 0:
            raise InvalidInput(f"{what} {place} is empty (0 bytes)")

    @staticmethod
    def _system(place: str) -> Any:
        kind = scheme(place)
        try:
            import fsspec

            return fsspec.filesystem(kind, **({"allow_redirects": False} if kind in WEB else {}))
        except ImportError as error:
            raise MissingExtra(
                f"{kind}:// needs what fsspec reads it with: {str(error).strip() or kind}; and "
                "pip install 'blended-latent-diffusion[batch]'"
            ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
