"""The files that weights lie in: if they are whole, which they are, and the tensors of one."""

import hashlib
import json
from collections.abc import Iterable, Sequence
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


def read_tensors(file: Path, *, pickles: bool) -> dict[str, torch.Tensor]:
    """The tensors of a file by name: of a .safetensors file, or where `pickles` says so of a pickle.

    A trainer's pickle may have them under "state_dict", and other things beside them; it is read by torch's
    weights_only reader, which runs no code. Raises ModelUnavailable for anything else.
    """
    if not file.is_file():
        raise ModelUnavailable(
            f"{file}: no such file; expected weights, .safetensors or a pickle (.pt, .ckpt)"
        )
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        check_whole(file)
        return load_file(file)
    if not pickles:
        raise ModelUnavailable(
            f"{file}: not .safetensors, and reading a pickle may run code; give a .safetensors file, or "
            "--allow-pickle to have torch read the weights and nothing else"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, EOFError, RuntimeError: by what it is
        raise ModelUnavailable(
            f"{file}: torch cannot read it as weights and nothing else ({type(error).__name__}): it is "
            "damaged, or has objects beside weights, which are not read; look for a .safetensors copy"
        ) from error
    named = content.get("state_dict", content) if isinstance(content, dict) else content
    found = named.items() if isinstance(named, dict) else ()
    weights = {name: tensor for name, tensor in found if isinstance(tensor, torch.Tensor)}
    if not weights:
        raise ModelUnavailable(f"{file}: expected tensors by their names, and it has none")
    return weights
