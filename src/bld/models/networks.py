"""Networks from weights, whole or not at all, ready to run and not to be trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bld.errors import ModelUnavailable
from bld.models.weights import is_pickled


def whole_network(folder: Path, part: str, kind: Any, dtype: torch.dtype, *, pickles: bool = False) -> Any:
    """A network of a diffusers folder."""
    pickled = is_pickled(folder / part)
    if pickled and not pickles:
        raise ModelUnavailable(
            f"{folder}: {_named(part)} has pickled weights alone, and reading a pickle may run code; give a "
            "model with safetensors, or --allow-pickle to have torch read the weights and nothing else"
        )
    with loading(folder, part):
        return read_network(folder / part, kind, dtype, pickled=pickled)


def read_network(folder: Path, kind: Any, dtype: torch.dtype, *, pickled: bool = False) -> Any:
    """The network in a folder, frozen. Raises ValueError if some of its weights are missing or misshapen."""
    precision = {"dtype" if kind.__module__.startswith("transformers.") else "torch_dtype": dtype}
    network, found = kind.from_pretrained(
        folder, use_safetensors=not pickled, output_loading_info=True, **precision
    )
    refuse_made_up([*found["missing_keys"], *found["mismatched_keys"]])
    return network.eval().requires_grad_(False)


def empty_network(folder: Path, part: str, kind: Any) -> Any:
    """A network of a diffusers folder as its configuration has it, without weights (on the meta device)."""
    with loading(folder, part), torch.device("meta"):
        if hasattr(kind, "load_config"):  # of diffusers
            return kind.from_config(kind.load_config(folder / part))
        return kind(kind.config_class.from_pretrained(folder / part))


def filled_network(kind: Any, config: Any, weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """A network of a class and its configuration, with weights that bear the names of its tensors.

    What else is among the weights is left. Raises ValueError if some are missing or of another shape.
    """
    if not hasattr(kind, "from_config"):  # of transformers
        network, found = kind.from_pretrained(
            None, config=config, state_dict=dict(weights), dtype=dtype, output_loading_info=True
        )
        refuse_made_up([*found["missing_keys"], *found["mismatched_keys"]])
    else:
        with torch.device("meta"):  # no numbers are drawn that would be thrown away
            network = kind.from_config(config)
        wanted = network.state_dict()
        refuse_made_up(
            [key for key, t in wanted.items() if key not in weights or weights[key].shape != t.shape]
        )
        network.load_state_dict({key: weights[key].to(dtype) for key in wanted}, assign=True)
    return network.eval().requires_grad_(False)


def refuse_made_up(tensors: list[Any]) -> None:
    """Raise ValueError if weights lack any: both libraries would go on with random numbers."""
    if tensors:
        raise ValueError(f"its weights lack {len(tensors)} tensors, such as {tensors[0]}")


@contextmanager
def loading(source: Path, part: str) -> Iterator[None]:
    """Name the part of a model that cannot be loaded, in one line."""
    try:
        yield
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError, JSONDecodeError, ...
        reason = str(error).partition("\n")[0].strip() or type(error).__name__
        raise ModelUnavailable(f"{source}: cannot load {_named(part)}: {reason}") from error


def _named(part: str) -> str:
    return "it" if part == "." else f"its {part}"
