"""What the safetensors files of a model say of themselves: if they are whole, which they are, how large."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bld.errors import ModelUnavailable


def is_pickled(part: Path) -> bool:
    """Whether a part of a model has pickled weights and no others."""
    return any(part.glob("*.bin")) and not any(part.glob("*.safetensors"))


def header(file: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a safetensors file (dtype, shape, data_offsets, by name), and how long it should be.

    Raises ModelUnavailable for any other file.
    """
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            facts = json.loads(content.read(min(length, size)))
            facts.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in facts.values()), default=0)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelUnavailable(
                f"{file}: not a safetensors file; remove it and fetch the model again"
            ) from error
    return facts, 8 + length + end


def check_whole(file: Path) -> None:
    """Raise ModelUnavailable unless a safetensors file is as long as its header says."""
    size, (_, whole) = file.stat().st_size, header(file)
    if size != whole:
        raise ModelUnavailable(f"{file}: {size} bytes of {whole}; remove it and fetch the model again")


def fingerprint(folder: Path, parts: Sequence[str] = (".",)) -> str:
    """A short name for the weights of a folder."""
    kinds = {part: "*.bin" if is_pickled(folder / part) else "*.safetensors" for part in parts}
    return sampled(folder, [file for part, kind in kinds.items() for file in (folder / part).glob(kind)])


def sampled(folder: Path, files: Iterable[Path]) -> str:
    """A short name for files in a folder: sha256 over the name, the size and 64 samples of each.

    Samples, because reading gigabytes would take longer than loading them; training moves them all.
    """
    total = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        total.update(f"{file.relative_to(folder)} {size}".encode())
        with file.open("rb") as content:
            for i in range(64):
                content.seek(size * i // 64)
                total.update(content.read(1 << 14))
    return total.hexdigest()[:12]


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
    meminfo, limits = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:  # a container may have less
        most, taken = (int((limits / name).read_text()) for name in ("memory.max", "memory.current"))
        return min(free, most - taken)
    except (OSError, ValueError):  # no limit
        return free
