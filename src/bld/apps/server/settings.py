"""What the server is told beside its models; options of an edit are in bld.options alone."""

import re
from dataclasses import dataclass, field

from bld.errors import InvalidInput
from bld.options import EditOptions

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+")  # as browsers send it


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Raises InvalidInput for a key that no request can send, and for an origin that no browser does.

    queue: edits that may wait. timeout: seconds from a request's arrival to its answer. max_body: bytes
    of a request, which must be there within upload_timeout seconds. answer_timeout: seconds that a client
    may take for each event of a stream, and for what is left of its answer after a SIGTERM. max_pixels: of
    a picture. url_lifetime: seconds that the URL of a result is good for. drain: seconds that those are
    still served for after a SIGTERM. api_keys: empty lets everyone in. aliases: other names of the models.
    links: whether results may be asked for as URLs.
    """

    queue: int = 16
    timeout: float = 600
    max_body: int = 64 * 2**20
    upload_timeout: float = 60
    answer_timeout: float = 60
    max_pixels: int = EditOptions().max_pixels
    url_lifetime: float = 3600
    drain: float = 10
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    links: bool = True

    def __post_init__(self) -> None:
        if not all(key and key == key.strip() for key in self.api_keys):
            raise InvalidInput("--api-key: a key is empty or has blanks around it; give one without")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise InvalidInput(
                    f"--cors-origin {origin}: expected an origin, with its scheme and without a path, such "
                    "as https://example.org, or * for all"
                )
