"""Blended Latent Diffusion: text-guided local editing of photographs.

    from bld import Editor
    editor = Editor.from_pretrained("mini")
    result = editor.edit("photo.jpg", "mask.png", "a guitar", candidates=8, seed=0)
    result.best.image.save("out.png")

Importing this package is light; torch and diffusers come in with the first name that needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bld.editor import Candidate, Editor, EditResult
    from bld.errors import BldError, Cancelled, InvalidInput, MissingExtra, ModelUnavailable
    from bld.options import EditOptions, preset
    from bld.session import Session

    __version__: str

_HOME = {
    "BldError": "bld.errors",
    "Cancelled": "bld.errors",
    "Candidate": "bld.editor",
    "EditOptions": "bld.options",
    "EditResult": "bld.editor",
    "Editor": "bld.editor",
    "InvalidInput": "bld.errors",
    "MissingExtra": "bld.errors",
    "ModelUnavailable": "bld.errors",
    "Session": "bld.session",
    "preset": "bld.options",
}

__all__ = [
    "BldError",
    "Cancelled",
    "Candidate",
    "EditOptions",
    "EditResult",
    "Editor",
    "InvalidInput",
    "MissingExtra",
    "ModelUnavailable",
    "Session",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # reading it takes as long as a fifth of `bld --help`
        from importlib.metadata import version

        return version("blended-latent-diffusion")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
