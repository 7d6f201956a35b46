"""Memory: what a model's weights take, what is free, and one line when there is not enough."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from bld.errors import BldError, ModelUnavailable
from bld.models.weights import header

LIMITS = Path("/sys/fs/cgroup")  # of a container


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise BldError with what may help where torch finds none; also a decorator."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        words = ("out of memory", "can't allocate memory")  # of Metal and of a CPU, a RuntimeError each
        if type(error) is RuntimeError and not any(word in str(error) for word in words):
            raise
        raise BldError(
            f"not enough memory ({reason}): try a smaller --batch-size, --vae-tiling, on a GPU --offload or "
            "--dtype float16, elsewhere --dtype bfloat16, or a smaller model (bld models has their sizes)"
        ) from error


def check_memory(source: Path, files: Iterable[Path], dtype: torch.dtype, device: torch.device) -> None:
    """Raise ModelUnavailable if the weights alone do not fit into what memory is free."""
    weights = 0
    for file in files:
        with suppress(ModelUnavailable):  # the loader names the part
            weights += sum(math.prod(tensor["shape"]) for tensor in header(file)[0].values())
    need, free = weights * dtype.itemsize, free_memory(device)
    if free is not None and need > free:
        half = "" if dtype.itemsize < 4 else ", --dtype bfloat16 takes half of it"
        raise ModelUnavailable(
            f"{source}: its weights take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}"
            f"{half}; close other programs or choose a smaller model (bld models has their sizes)"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that may still be taken on a device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:  # a container may have less
        most, taken = (int((LIMITS / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (LIMITS / "memory.stat").read_text().splitlines())
        cached = int(parts["inactive_file"]) + int(parts["active_file"])  # which is given back when needed
        return min(free, most - taken + cached)
    except (OSError, ValueError, KeyError):  # no limit
        return free
