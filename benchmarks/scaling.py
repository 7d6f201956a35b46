"""The figures of docs/scaling.md: `python benchmarks/scaling.py PART`.

flops: what one edit of each family costs, counted on the networks' real shapes without their weights.
measure: the stages of a batch by one worker here, which `simulate` starts from; writes a JSON file.
simulate: a batch by so many workers that fail and come back, from those stages; one worker first.
queue: how long an edit waits for one of several replicas, by the formula and by a simulation of it.
"""

import argparse
import heapq
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch import command, write_rows

HOUR = 3600.0

# --- flops ---


@dataclass(frozen=True)
class Shape:
    """A family at its native size. forwards: of the network for a step, two where guidance needs them."""

    name: str
    parameters: float  # as published, to see that the shape is right
    size: int
    steps: int
    forwards: int
    network: Callable[[], Any]
    inputs: Callable[[Any], dict[str, Any]]
    channels: int = 4


def _unet(**config: Any) -> Callable[[], Any]:
    def build() -> Any:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(**config)

    return build


def _unet_inputs(size: int, width: int, **added: tuple[int, ...]) -> Callable[[Any], dict[str, Any]]:
    def make(torch: Any) -> dict[str, Any]:
        conditions = {key: torch.empty(shape) for key, shape in added.items()}
        return {
            "sample": torch.empty(1, 4, size // 8, size // 8), "timestep": torch.empty(1),
            "encoder_hidden_states": torch.empty(1, 77, width),
            "added_cond_kwargs": conditions or None,
        }  # fmt: skip

    return make


def _sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=128, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, out_channels=16,
        pos_embed_max_size=192,
    )  # fmt: skip


def _sd3_inputs(torch: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(1, 16, 128, 128), "encoder_hidden_states": torch.empty(1, 333, 4096),
        "pooled_projections": torch.empty(1, 2048), "timestep": torch.empty(1),
    }  # fmt: skip


def _flux() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True)


def _flux_inputs(torch: Any) -> dict[str, Any]:
    tokens = (1024 // 16) ** 2
    return {
        "hidden_states": torch.empty(1, tokens, 64), "encoder_hidden_states": torch.empty(1, 512, 4096),
        "pooled_projections": torch.empty(1, 768), "timestep": torch.empty(1), "guidance": torch.empty(1),
        "img_ids": torch.empty(tokens, 3), "txt_ids": torch.empty(512, 3),
    }  # fmt: skip


SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SHAPES = (
    Shape("Stable Diffusion 1.5", 0.86, 512, 50, 2, _unet(cross_attention_dim=768), _unet_inputs(512, 768)),
    Shape(
        "Stable Diffusion XL", 2.57, 1024, 50, 2, _unet(**SDXL),
        _unet_inputs(1024, 2048, text_embeds=(1, 1280), time_ids=(1, 6)),
    ),
    Shape("Stable Diffusion 3 medium", 2.03, 1024, 28, 2, _sd3, _sd3_inputs, 16),
    Shape("FLUX.1 dev", 11.9, 1024, 28, 1, _flux, _flux_inputs, 16),
)  # fmt: skip


def flops(asked: argparse.Namespace) -> None:
    """Operations of a forward, of the decoder and of a candidate; hours and price of 1000 edits on a GPU."""
    import torch
    from diffusers import AutoencoderKL
    from torch.utils.flop_counter import FlopCounterMode

    def counted(call: Callable[[], Any]) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        return counter.get_total_flops() / 1e12

    print(
        "| family, native size | parameters, 1e9 | TFLOP: forward | decode | all | a second | hours | price |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        with torch.device("meta"):
            network = shape.network()
            inputs = shape.inputs(torch)
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=shape.channels,
            )  # fmt: skip
            z = torch.empty(1, shape.channels, shape.size // 8, shape.size // 8)
        size = sum(p.numel() for p in network.parameters()) / 1e9
        assert abs(size / shape.parameters - 1) < 0.02, f"{shape.name}: {size} is not {shape.parameters}"
        forward = counted(lambda: network(**inputs))  # noqa: B023
        decode = counted(lambda: vae.decode(z))  # noqa: B023
        whole = shape.steps * shape.forwards * forward + decode
        rate = asked.peak * asked.share / whole
        hours = 1000 * asked.candidates / rate / HOUR
        print(
            f"| {shape.name}, {shape.size} px, {shape.steps} steps | {size:.2f} | {forward:.2f} | "
            f"{decode:.2f} | {whole:.0f} | {rate:.2f} | {hours:.1f} | {hours * asked.price:.1f} |"
        )


# --- measure and simulate ---


def measure(asked: argparse.Namespace) -> None:
    """Run a batch with one worker and keep what each stage took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_rows(folder, asked.rows)
        words = command(manifest, folder / "out", asked, "--workers", "1")
        begun = time.time()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.time() - begun
        stamps = sorted(path.stat().st_mtime for path in folder.glob("out/edits/*/edit.json"))
        stages: dict[str, list[float]] = {}
        for path in folder.glob("out/edits/*/edit.json"):
            for stage, taken in json.loads(path.read_text())["seconds"].items():
                stages.setdefault(stage, []).append(taken)
        # A unit's rows are written one after the other; the next unit's first one after its denoising.
        units = [b - a for a, b in zip(stamps[::4], stamps[4::4], strict=False)]
    commit = _commits()
    facts = {
        "rows": asked.rows, "rows_in_a_unit": 4, "seconds": seconds, "units": units, "commit": commit,
        "start": stamps[0] - begun - statistics.mean(units),
        "stages": {stage: statistics.mean(taken) for stage, taken in stages.items()},
    }  # fmt: skip
    Path(asked.measured).parent.mkdir(parents=True, exist_ok=True)
    Path(asked.measured).write_text(json.dumps(facts) + "\n")
    written = statistics.mean(units) / 4 - sum(facts["stages"].values())
    print("| one row | s |\n|---|---|")
    for stage, taken in (*facts["stages"].items(), ("read, check, write", written)):
        print(f"| {stage} | {taken:.3f} |")
    print(f"| all of it | {statistics.mean(units) / 4:.3f} |")
    print(
        f"\n{asked.rows} rows in {seconds:.1f} s, of which {facts['start']:.1f} s until the first unit began;"
    )
    print(f"a ledger's transaction {commit * 1000:.1f} ms")
    seconds, size = _png()
    print(f"a PNG of 1024 px {seconds:.2f} s and {size / 1e6:.1f} MB")


def _png() -> tuple[float, int]:
    """Seconds and bytes of one result of 1024 px."""
    import numpy as np
    from PIL import Image
    from skimage import data

    from bld.png import encode_png

    pixels = np.asarray(Image.fromarray(data.astronaut()).resize((1024, 1024), Image.Resampling.BICUBIC))
    started = time.perf_counter()
    size = len(encode_png(pixels))
    return time.perf_counter() - started, size


def _commits(count: int = 300) -> float:
    """Seconds of a transaction of the ledger, for a unit of four rows."""
    from bld.apps.batch.ledger import Ledger, Outcome

    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        started = time.perf_counter()
        for unit in range(count):
            ledger.record(Outcome(number=4 * unit + i, id=str(i), status="done") for i in range(4))
        return (time.perf_counter() - started) / count


@dataclass(frozen=True)
class Run:
    """What a simulated batch came to. lost: worker seconds of units that were begun and not done."""

    seconds: float
    failures: int
    lost: float
    planner: float  # share of the time that the one process which plans and records was busy


def simulated(
    facts: dict[str, Any], *, workers: int, rows: int, mean_life: float, restart: float, seed: int = 0
) -> Run:
    """Workers take units from one planner, which records them one at a time; a worker that fails loses its
    unit, which goes back into the queue, and is there again after `restart`.

    Events in time order: (when, number, worker, whether it fails, since when it works on its unit).
    Durations are drawn from those measured. mean_life: 0 for workers that never fail.
    """
    draw = random.Random(seed)
    events: list[tuple[float, int, int, bool, float]] = []
    dies = [draw.expovariate(1 / mean_life) if mean_life else math.inf for _ in range(workers)]
    idle = [(facts["start"], worker) for worker in range(workers)]  # from when on, in order
    left = waiting = math.ceil(rows / facts["rows_in_a_unit"])
    now = planner_free = busy = lost = 0.0
    number = failures = 0
    while left:
        while waiting and idle and (not events or idle[0][0] <= events[0][0]):
            since, worker = heapq.heappop(idle)
            since, waiting, number = max(since, now), waiting - 1, number + 1
            ends = since + draw.choice(facts["units"])
            failed = dies[worker] < ends
            heapq.heappush(events, (max(since, min(ends, dies[worker])), number, worker, failed, since))
        now, _, worker, failed, since = heapq.heappop(events)
        if failed:
            failures, lost, waiting = failures + 1, lost + now - since, waiting + 1
            dies[worker] = now + restart + draw.expovariate(1 / mean_life)
            heapq.heappush(idle, (now + restart, worker))
        else:
            left -= 1
            planner_free = max(planner_free, now) + facts["commit"]
            busy += facts["commit"]
            heapq.heappush(idle, (planner_free, worker))
    end = max(now, planner_free)
    return Run(end, failures, lost, busy / end)


def simulate(asked: argparse.Namespace) -> None:
    """A cluster of growing size, from what was measured here; the first line is the measurement itself."""
    facts = json.loads(Path(asked.measured).read_text())
    one = simulated(facts, workers=1, rows=facts["rows"], mean_life=0, restart=0)
    print("| workers | rows | each lives, h | seconds | rows/s | of ideal | failures | lost | planner busy |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| 1, measured | {facts['rows']} | | {facts['seconds']:.0f} | "
        f"{facts['rows'] / facts['seconds']:.2f} | | | | |"
    )
    ideal = facts["rows_in_a_unit"] / statistics.mean(facts["units"])
    for workers, life in ((1, 0.0), (10, 24.0), (100, 0.0), (100, 24.0), (100, 1.0), (1000, 24.0)):
        rows = facts["rows"] if workers == 1 else asked.rows_each * workers
        run = simulated(facts, workers=workers, rows=rows, mean_life=life * HOUR, restart=asked.restart)
        rate = rows / run.seconds
        worked = rows / ideal
        print(
            f"| {workers} | {rows} | {life or 'never fails'} | {run.seconds:.0f} | {rate:.2f} | "
            f"{rate / workers / ideal:.1%} | {run.failures} | {run.lost / worked:.2%} | {run.planner:.1%} |"
        )
    off = one.seconds / facts["seconds"] - 1
    print(f"\none worker, simulated beside measured: {off:+.1%}")


# --- queue ---


def erlang(load: float, replicas: int) -> float:
    """The share of edits that wait where `load` replicas are busy on the mean (Erlang's C formula)."""
    term = total = 1.0
    for i in range(1, replicas):
        term *= load / i
        total += term
    waits = term * load / replicas / (1 - load / replicas)
    return waits / (total + waits)


def queue(asked: argparse.Namespace) -> None:
    """Waiting times, in service times, for edits that arrive at random."""
    print("| replicas | busy | wait at all | mean wait | simulated | alike in length | of those 95 % under |")
    print("|---|---|---|---|---|---|---|")
    for replicas in (1, 2, 4, 8, 16):
        for busy in (0.5, 0.8, 0.9):
            waits = erlang(busy * replicas, replicas)
            mean = waits / (replicas * (1 - busy))
            drawn = _waits(replicas, busy, lambda draw: draw.expovariate(1))
            alike = _waits(replicas, busy, lambda draw: 1.0)
            tail = statistics.quantiles(alike, n=20)[-1]
            print(
                f"| {replicas} | {busy:.0%} | {waits:.0%} | {mean:.2f} | {statistics.mean(drawn):.2f} | "
                f"{statistics.mean(alike):.2f} | {tail:.2f} |"
            )


def _waits(
    replicas: int, busy: float, length: Callable[[random.Random], float], edits: int = 200_000
) -> list[float]:
    draw, free, now, waits = random.Random(0), [0.0] * replicas, 0.0, []
    for _ in range(edits):
        now += draw.expovariate(busy * replicas)
        begun = max(now, heapq.heappop(free))
        waits.append(begun - now)
        heapq.heappush(free, begun + length(draw))
    return waits


def main() -> None:
    """Print a part's table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"flops": flops, "measure": measure, "simulate": simulate, "queue": queue}
    parser.add_argument("part", choices=parts)
    parser.add_argument(
        "--peak", type=float, default=312, help="TFLOP/s of the GPU (an A100's in half precision)"
    )
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that is reached: an assumption")
    parser.add_argument("--candidates", type=int, default=4, help="of an edit, for hours and price of 1000")
    parser.add_argument("--price", type=float, default=2, help="of a GPU's hour")
    parser.add_argument("--measured", default="runs/scaling.json", help="file of `measure`")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows-each", type=int, default=5000, help="rows for each simulated worker")
    parser.add_argument("--restart", type=float, default=300, help="s until a failed worker is there again")
    asked = parser.parse_args()
    parts[asked.part](asked)


if __name__ == "__main__":
    sys.exit(main())
