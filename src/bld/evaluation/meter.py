"""What an edit costs: seconds, evaluations of the network, memory."""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PROCESS = Path("/proc/self")


@dataclass
class Cost:
    """seconds: on the wall. inside: those of them within the networks' forward passes. evaluations: of the
    denoising network, one a sample and pass, so that guidance counts two. widest: the largest batch it was
    given. megabytes: by which the process grew at its peak, or the GPU's tensors; None where nobody says.
    """

    seconds: float = 0.0
    inside: float = 0.0
    evaluations: int = 0
    widest: int = 0
    megabytes: float | None = None


def denoiser(model: Any) -> torch.nn.Module:
    """The network that a model denoises with."""
    network: torch.nn.Module = getattr(model, "unet", None) or model.transformer
    return network


def autoencoder(model: Any) -> list[torch.nn.Module]:
    """The networks that a model encodes and decodes with."""
    return [model.vae.encoder, model.vae.decoder]


@contextmanager
def metered(network: torch.nn.Module, *others: torch.nn.Module) -> Iterator[Cost]:
    """The cost of what happens within the block; complete when it ends. others: networks beside the denoiser,
    none of which calls another of them.
    """
    cost, entered = Cost(), 0.0

    def count(_: torch.nn.Module, args: tuple[Any, ...], kinds: dict[str, Any]) -> None:
        batch = len(args[0] if args else kinds["hidden_states"])
        cost.evaluations += batch
        cost.widest = max(cost.widest, batch)

    def enter(*_: Any) -> None:
        nonlocal entered
        entered = _now()

    def leave(*_: Any) -> None:
        cost.inside += _now() - entered

    hooks = [network.register_forward_pre_hook(count, with_kwargs=True)]
    for part in (network, *others):
        hooks += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    grown = _growth()
    started = _now()
    try:
        yield cost
    finally:
        for hook in hooks:
            hook.remove()
        cost.seconds = _now() - started
        cost.megabytes = grown()


def _now() -> float:
    """Seconds of a clock, when the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _growth() -> Callable[[], float | None]:
    """From now on; call it for the megabytes by which memory grew at its peak since."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - held) / 1e6
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed counts no more
        (PROCESS / "clear_refs").write_text("5")  # the peak begins anew
        resident = _status("VmRSS")
    except OSError:  # not Linux
        return lambda: None
    return lambda: (_status("VmHWM") - resident) / 1e3


def _status(name: str) -> int:
    """A size of this process in kB."""
    lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return int(lines[name].split()[0])
