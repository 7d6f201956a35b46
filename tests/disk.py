"""A disk that is full, for as long as a test needs it to be."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Within it a file of this process takes no more than `room` bytes; what is beyond is an OSError."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, largest[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, largest)
        signal.signal(signal.SIGXFSZ, ignored)
