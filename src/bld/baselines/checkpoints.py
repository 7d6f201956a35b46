"""Published weights in their authors' files, read with checks."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from bld.errors import ModelUnavailable
from bld.models.weights import check_whole


def read_checkpoint(path: Path, *, pickles: bool) -> Mapping[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a pickle where `pickles` says so.

    A trainer's checkpoint has them under "state_dict". Raises ModelUnavailable for anything else.
    """
    if not path.is_file():
        raise ModelUnavailable(f"{path}: no such file; expected a checkpoint, .safetensors or .pt")
    if path.suffix == ".safetensors":
        check_whole(path)
        return load_file(path)
    if not pickles:
        raise ModelUnavailable(
            f"{path}: a pickle, and reading one may run code; give a .safetensors file, or --allow-pickle to "
            "have torch read the weights and nothing else"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, ...
        raise ModelUnavailable(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    if not found or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ModelUnavailable(f"{path}: expected tensors by their names, and nothing else")
    return found
