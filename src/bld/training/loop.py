"""What every training run shares: schedule, weight averages, checkpoints, a loss curve, whole parts."""

import csv
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from torch import nn

from bld.errors import InvalidInput
from bld.reconstruct import has_bfloat16
from bld.training.limits import NO_LIMITS, Limits

SECONDS_BETWEEN_CHECKPOINTS = 180
STEPS_BETWEEN_LOGS = 100
STEPS_BETWEEN_AVERAGES = 4
log_ = logging.getLogger(__name__)


class OutOfTime(Exception):
    """A run has reached its deadline; its checkpoint is written."""


def on_cpu() -> bool:
    """Whether the training runs on a CPU."""
    return torch.get_default_device().type == "cpu"


def seeded(seed: int) -> torch.Generator:
    """A generator of the device that the training runs on; of several processes each draws its own."""
    rank = PartialState(cpu=on_cpu()).process_index
    return torch.Generator(torch.get_default_device()).manual_seed(seed + 1_000_003 * rank)


def join_group(device: torch.device) -> bool:
    """Meet the other processes, if there are any, before anything is made; whether this is the first one.

    From here on "cuda" is the GPU of this process: `device`, or of several processes each one's own. Raises
    InvalidInput if several are given a single one.
    """
    state = PartialState(cpu=device.type == "cpu")
    if device.type == "cuda" and device.index is not None:
        if state.num_processes > 1:
            raise InvalidInput(
                f"--device {device} with {state.num_processes} processes: each takes a GPU of its own; "
                "say --device cuda, and choose among the GPUs by CUDA_VISIBLE_DEVICES"
            )
        torch.cuda.set_device(device)
    return bool(state.is_main_process)


def leave_group() -> None:
    """Part from the other processes, if there are any, when all have come so far.

    One that ended with its connections open could abort another, and one that ended with the group's
    threads running itself. They end here only if torch._dynamo, which optimisers import, was imported before
    there was a group (torch 2.13); so this module imports it.
    """
    state = PartialState(cpu=on_cpu())
    state.wait_for_everyone()
    state.destroy_process_group()


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A fresh folder to write into, which takes the place of `folder` when the block ends well.

    So what is there is all there, at whatever moment a process was killed.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def once(folder: Path, fill: Callable[[Path], Any]) -> None:
    """Have `folder` made by what fills it, unless it is there; of several processes, by the first one."""
    with PartialState(cpu=on_cpu()).main_process_first():
        if not folder.is_dir():
            with whole(folder) as fresh:
                fill(fresh)


@contextmanager
def alone(folder: Path, part: str) -> Iterator[None]:
    """Keep a part of a folder from being trained by another process meanwhile; the lock ends with this one.

    Raises InvalidInput where another one has it.
    """
    import fcntl  # which Windows has not

    with (folder / f".{part}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput(
                f"{folder}: another bld train is at work on its {part}; wait for it, or choose another folder"
            ) from error
        yield


def half_precision() -> torch.autocast:
    """bfloat16 where it is safe, on the device that the training runs on, if that computes in it itself."""
    device = torch.get_default_device()
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))


def rate(done: float, *, warmup: float, decay_from: float = 0.3) -> float:
    """Learning-rate factor after the share `done` of a run: linear warm-up, constant, linear to 0."""
    if done < warmup:
        return done / warmup
    return min(1.0, max(0.0, (1 - done) / (1 - decay_from)))


class Average:
    """Power-function average of a module's weights (EDM2, relative width about 0.1 for gamma 6.94)."""

    def __init__(self, module: nn.Module, gamma: float = 6.94) -> None:
        self.module, self.gamma = module, gamma
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = (1 - 1 / (step + 1)) ** (self.gamma + 1)
        for key, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.weights[key].lerp_(value, 1 - keep)
            else:
                self.weights[key].copy_(value)  # a counter


class Objective(nn.Module):
    """What learns, and the step that gives its loss, as one module that several devices share."""

    def __init__(self, modules: dict[str, nn.Module], step: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.parts, self.step = nn.ModuleDict(modules), step

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """The loss. Torch shares a module among GPUs only if it is given something to move to them."""
        return self.step()


def begin_with(network: Any, folder: Path) -> None:
    """Put the weights of a saved network of the same kind into a fresh one.

    Raises InvalidInput if there is none, or if it has another shape.
    """
    if not (folder / "config.json").is_file():
        raise InvalidInput(f"cannot start from {folder.parent}: it has no {folder.name}")
    weights = type(network).from_pretrained(folder).state_dict()
    shapes = [{name: tuple(w.shape) for name, w in part.items()} for part in (weights, network.state_dict())]
    other = sorted(name for name, _ in set(shapes[0].items()) ^ set(shapes[1].items()))
    if other:
        raise InvalidInput(f"cannot start from {folder}: the recipe's {folder.name} has another {other[0]}")
    network.load_state_dict(weights)


@dataclass
class Run:
    """One resumable training run. `step` returns the loss of a fresh batch; the rest is here.

    The checkpoint holds weights, averages, optimiser, the generator that draws the data and the count,
    so a run that is stopped at any minute goes on from its last checkpoint, bit for bit if `step` keeps
    no state of its own (the latents of text-to-image are drawn anew). Started by `torchrun`, each
    process draws its own batches and the gradients are averaged; the first one keeps the books.
    """

    folder: Path
    name: str
    modules: dict[str, nn.Module]
    generator: torch.Generator
    samples: int
    batch: int
    learning_rate: float
    limits: Limits = NO_LIMITS
    warmup: float = 0.02

    def __post_init__(self) -> None:
        self.accelerator = Accelerator(cpu=on_cpu())
        groups: list[dict[str, Any]] = []
        for module in self.modules.values():
            trained = [p for p in module.parameters() if p.requires_grad]
            groups.append({"params": [p for p in trained if p.ndim > 1]})
            groups.append({"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0})
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
        )
        self.averages = {k: Average(m) for k, m in self.modules.items()}
        self.done, self.seconds = 0, 0.0  # samples, and the time that they took
        self.checkpoint = self.folder / f"{self.name}.pt"
        if self.checkpoint.exists():
            self.load()

    def state(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "seconds": self.seconds,
            "modules": {k: m.state_dict() for k, m in self.modules.items()},
            "averages": {k: a.weights for k, a in self.averages.items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    @property
    def keeps_books(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)

    def write(self, name: str, *pieces: Any) -> None:
        """Save a finished part, all pieces of it (whatever has `save_pretrained`), in the run's folder."""
        if self.keeps_books:
            with whole(self.folder / name) as fresh:
                for piece in pieces:
                    piece.save_pretrained(fresh)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        if not self.keeps_books:
            return
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(self.state(), temporary)
        temporary.replace(self.checkpoint)

    def load(self) -> None:
        state = torch.load(self.checkpoint, map_location=torch.get_default_device(), weights_only=True)
        self.done, self.seconds = state["done"], state["seconds"]
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
            self.averages[key].weights = state["averages"][key]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.keeps_books:
            self._cut_log()
            self.generator.set_state(state["generator"].cpu())
        else:  # draws that it has not made yet
            self.generator.manual_seed(self.generator.initial_seed() + self.done)

    @property
    def share(self) -> float:
        """How much of the run is over, by its samples or by its time, whichever is further."""
        return max(self.done / self.samples, self.seconds / self.limits.within)

    def clock(self, seconds: float) -> tuple[float, bool]:
        """The seconds of the run and whether its deadline is over: of all processes the first one's, or one
        would wait for gradients of others that have stopped.
        """
        late = time.monotonic() > self.limits.deadline
        if self.accelerator.num_processes == 1:
            return seconds, late
        told = torch.tensor([seconds, float(late)], device=self.accelerator.device)
        seconds, over = broadcast(told).tolist()
        return seconds, bool(over)

    def train(self, step: Callable[[], torch.Tensor]) -> None:
        """Run until `samples` are done, or the time is over that the run may take.

        Raises OutOfTime, with the checkpoint written, at the deadline.
        """
        objective = self.accelerator.prepare_model(Objective(self.modules, step))
        nothing = torch.zeros(1, device=self.accelerator.device)  # `step` draws its own batch
        before, started, saved = self.seconds, time.monotonic(), time.monotonic()
        losses: list[torch.Tensor] = []
        while self.share < 1:
            factor = rate(self.share, warmup=self.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * max(factor, 1e-3)
            loss = objective(nothing)
            self.accelerator.backward(loss)
            norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
            if torch.isfinite(norm):  # one bad batch must not end a night's run
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.done += self.batch * self.accelerator.num_processes
            self.seconds, late = self.clock(before + time.monotonic() - started)
            number = self.done // (self.batch * self.accelerator.num_processes)
            if number % STEPS_BETWEEN_AVERAGES == 0:
                for average in self.averages.values():
                    average.update(number // STEPS_BETWEEN_AVERAGES)
            losses.append(loss.detach())
            if number % STEPS_BETWEEN_LOGS == 0:
                self.log(losses, factor, self.seconds)
                losses = []
            if time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self.save()
                saved = time.monotonic()
            if late:
                self.save()
                raise OutOfTime(f"{self.name}: {self.done} of {self.samples} samples")
        self.save()

    def log(self, losses: Iterable[torch.Tensor], factor: float, seconds: float) -> None:
        """One row of the loss curve, and the same on the screen."""
        if not self.keeps_books:
            return
        mean = float(torch.stack(list(losses)).float().mean())
        path = self.folder / f"{self.name}.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["samples", "loss", "learning_rate", "seconds"])
            writer.writerow(
                [self.done, f"{mean:.6f}", f"{factor * self.learning_rate:.2e}", f"{seconds:.0f}"]
            )
        log_.info("%s: %d of %d samples, loss %.4f", self.name, self.done, self.samples, mean)

    def _cut_log(self) -> None:
        """Drop what was logged after the checkpoint: it is done, and logged, again."""
        path = self.folder / f"{self.name}.csv"
        if path.exists():
            names, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
            kept = [one for one in lines if one.endswith(b"\n") and int(one.partition(b",")[0]) <= self.done]
            path.write_bytes(names + b"".join(kept))

    def averaged(self, key: str) -> nn.Module:
        """The module with its averaged weights put in place (training weights are overwritten)."""
        module = self.modules[key]
        module.load_state_dict(self.averages[key].weights)
        return module.eval()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio, dB, for values in [0,1]."""
    error = (a.clamp(0, 1) - b.clamp(0, 1)).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((-10 * error.log10()).mean()) if not math.isnan(float(error.sum())) else math.nan
