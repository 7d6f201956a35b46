"""Serving the studio: one page, one model, nothing from outside, nothing left behind."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bld.apps.studio.visit import GRACE, Visits
from bld.editor import Editor
from bld.errors import InvalidInput
from bld.options import LoadOptions

ROOM = 16 * 2**20  # bytes of a request beside an upload: forms, the layers of a painting
REQUESTS = 256  # of all visitors that may wait: edits have a limit of their own
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class Address:
    """Where to listen, for whom, and how large an upload may be."""

    host: str
    port: int | None
    max_upload_mb: int
    users: tuple[tuple[str, str], ...] = ()


@contextmanager
def serve(
    editor: Editor,
    address: Address,
    *,
    loading: LoadOptions,
    ranker: str,
    max_pixels: int,
    grace: float = GRACE,
) -> Iterator[str]:
    """Serve the studio while the block runs; yields its address.

    Uploads and results lie in a folder of this process alone, which is removed at the end, and a visit's
    part of it `grace` seconds after its page has gone. Raises InvalidInput if the port is taken.
    """
    folder = Path(tempfile.mkdtemp(prefix="bld-studio-"))
    with _environment({**SETTINGS, "GRADIO_TEMP_DIR": str(folder)}):
        from bld.apps.studio.edits import Runner
        from bld.apps.studio.events import Studio
        from bld.apps.studio.layout import page, style
        from bld.apps.studio.wiring import wire

        visits = Visits(folder, grace)
        visits.keep_swept()
        blocks, parts = page()
        with blocks:
            studio = Studio(
                Runner(editor), visits, parts, loading=loading, ranker=ranker, max_pixels=max_pixels
            )
            wire(blocks, parts, studio)
        try:
            yield _launched(blocks.queue(max_size=REQUESTS), address, style())
        finally:
            blocks.close(verbose=False)
            visits.close()


def _launched(blocks: Any, address: Address, style: dict[str, Any]) -> str:
    """Begin to listen; returns the address of the page."""
    from starlette.middleware import Middleware

    from bld.apps.body import Limited

    largest = address.max_upload_mb * 2**20
    try:
        _, url, _ = blocks.launch(
            server_name=address.host,
            server_port=address.port,
            auth=list(address.users) or None,
            max_file_size=largest,
            # Some of gradio's routes read what is sent before they ask who sends it.
            app_kwargs={"middleware": [Middleware(Limited, max_body=largest + ROOM)]},
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,  # it would keep what visitors typed in their browser
            enable_monitoring=False,
            footer_links=[],
            **style,
        )
    except OSError as error:
        raise InvalidInput(
            f"cannot listen on {address.host}, port {address.port or '7860 and above'}; "
            "choose another --host or --port"
        ) from error
    return str(url).rstrip("/")


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs: gradio reads them here and there."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old
