"""What can go wrong, as one tree.

BldError                    everything this package raises on purpose
├── InvalidInput            what the user gave cannot be used (also a ValueError)
├── ModelUnavailable        a model is unknown, incomplete or cannot be loaded
├── MissingExtra            an optional dependency is not installed (also an ImportError)
└── Cancelled               the caller asked for the work to stop

A message is one line that says what came, what was expected and how to mend it: front ends show
it as it stands, without a traceback.
"""


class BldError(Exception):
    """The root: catch it to catch everything this package raises on purpose."""


class InvalidInput(BldError, ValueError):
    """What the user gave cannot be used: a file, a mask, a prompt, a number out of range."""


class ModelUnavailable(BldError):
    """A model is unknown, incomplete or cannot be loaded."""


class MissingExtra(BldError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class Cancelled(BldError):
    """The caller asked for the work to stop; nothing was written."""
