"""`bld batch`, measured: `python benchmarks/batch.py PART [--rows 500] [--model mini] [--steps 4]`.

kills: a run that is killed 30 times (its process group, at random moments), beside one that is not.
workers: one and two workers of one thread each, and two actors on a Ray that is started for them.
check: a manifest of 100,000 rows is checked, and nothing is edited.

Edits are of photographs of 256 px, with one candidate and few steps: what is not the UNet counts.
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

SIDE = 256
PROMPTS = ("a red apple", "a blue guitar", "a cactus", "a yellow cup", "a green car")
PHOTOGRAPHS = {
    "coffee": data.coffee,
    "astronaut": data.astronaut,
    "chelsea": data.chelsea,
    "rocket": data.rocket,
}
KILLS = 30
LONGEST = 12.0  # s from a start to its kill: the model is there after half of it


def write_rows(folder: Path, rows: int, *, distinct: bool = False) -> Path:
    """A manifest on four photographs and eight masks; distinct: each row has its own, and its own prompt."""
    for name, picture in PHOTOGRAPHS.items():
        Image.fromarray(picture()).resize((SIDE, SIDE)).save(folder / f"{name}.png")
    for i in range(8):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[20 + 12 * i : 116 + 12 * i, 120 - 10 * i : 216 - 10 * i] = 255
        Image.fromarray(mask).save(folder / f"mask{i}.png")
    names, path = list(PHOTOGRAPHS), folder / "rows.jsonl"
    with path.open("w") as file:
        for i in range(rows):
            image, mask, prompt = f"{names[i % 4]}.png", f"mask{i // 4 % 8}.png", PROMPTS[i % 5]
            if distinct:
                place = folder / f"{i // 1000}"
                place.mkdir(exist_ok=True)
                for kind, source in (("image", image), ("mask", mask)):
                    os.link(folder / source, place / f"{i}-{kind}.png")
                image, mask = f"{i // 1000}/{i}-image.png", f"{i // 1000}/{i}-mask.png"
                prompt = f"{prompt} number {i}"
            row = {"id": f"edit-{i:06d}", "image": image, "mask": mask, "prompt": prompt}
            file.write(json.dumps(row) + "\n")
    return path


def command(manifest: Path, output: Path, asked: argparse.Namespace, *flags: str) -> list[str]:
    """`bld batch` of a manifest, with the options of all parts."""
    words = [sys.executable, "-m", "bld.apps.cli", "batch", str(manifest), "--output", str(output)]
    options = ["--model", asked.model, "--steps", str(asked.steps), "--candidates", "1", "--device", "cpu"]
    return [*words, *options, *flags]


def run(words: list[str]) -> tuple[float, str]:
    """Seconds of a command, and what it said."""
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return seconds, done.stdout + done.stderr


def rows_per_second(said: str) -> float:
    """The last rate that a batch told."""
    return float(re.findall(r"([\d.]+) rows/s", said)[-1])


def results(output: Path) -> dict[str, bytes]:
    """Every file of every edit; of its record all but the seconds."""
    found = {}
    for path in sorted((output / "edits").rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "edit.json":
                facts = json.loads(content)
                facts.pop("seconds")
                content = json.dumps(facts).encode()
            found[str(path.relative_to(output))] = content
    return found


def kills(folder: Path, asked: argparse.Namespace) -> None:
    """Killed again and again, and the same bytes."""
    manifest, seed = write_rows(folder, asked.rows), random.SystemRandom().randrange(10**6)
    flags, draw = ("--workers", "2"), random.Random(seed)
    alone, said = run(command(manifest, folder / "alone", asked, *flags))
    rate = rows_per_second(said)
    before = alone - asked.rows / rate  # s until the first edit begins
    broken = folder / "broken"
    redone, lost, done, started = 0, 0.0, dict[Path, int](), time.perf_counter()
    for kill in range(KILLS):
        with subprocess.Popen(
            command(manifest, broken, asked, *flags), start_new_session=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            moment = draw.uniform(0, LONGEST)
            time.sleep(moment)
            os.killpg(process.pid, signal.SIGKILL)
        known = len(done)
        for path in broken.glob("edits/*/result.png"):
            stamp = path.stat().st_mtime_ns
            redone += done.setdefault(path, stamp) != stamp
        lost += max(0, moment - before) * rate - (len(done) - known)
        print(f"kill {kill + 1}: {len(done)} edits done", file=sys.stderr)
    run(command(manifest, broken, asked, *flags))
    redone += sum(path.stat().st_mtime_ns != stamp for path, stamp in done.items())
    seconds = time.perf_counter() - started
    same = results(folder / "alone") == results(broken)
    print(
        f"| {asked.rows} rows, {asked.model}, {asked.steps} steps, two workers, moments from seed {seed} | |"
    )
    print("|---|---|")
    print(f"| undisturbed, s | {alone:.0f} |")
    print(f"| killed {KILLS} times, s | {seconds:.0f} |")
    print(f"| files alike, of {len(results(broken))} | {'all' if same else 'NOT ALL'} |")
    print(f"| edits that had been done and were done again | {redone} |")
    print(f"| edits lost in work, a kill: what its seconds give, less what is there | {lost / KILLS:.1f} |")


def workers(folder: Path, asked: argparse.Namespace) -> None:
    """One worker, two, and two again by Ray: rows a second of the whole command and once it is under way."""
    manifest = write_rows(folder, asked.rows)
    kinds: dict[str, Callable[[], list[str]]] = {
        "one worker": lambda: ["--workers", "1"],
        "two workers": lambda: ["--workers", "2"],
        "two actors on Ray": lambda: ["--workers", "2", "--ray", "local"],
    }
    print(f"| {asked.rows} rows, {asked.model}, {asked.steps} steps | s, all of it | rows/s under way |")
    print("|---|---|---|")
    for name in asked.kinds.split(","):
        seconds, said = run(command(manifest, folder / name.replace(" ", "-"), asked, *kinds[name]()))
        print(f"| {name} | {seconds:.1f} | {rows_per_second(said):.2f} |", flush=True)
    found = [results(folder / name.replace(" ", "-")) for name in asked.kinds.split(",")]
    print(f"\nfiles alike: {all(one == found[0] for one in found)}")


def check(folder: Path, asked: argparse.Namespace) -> None:
    """Check a manifest and write nothing."""
    print(f"| {asked.rows} rows | s | largest process, MB |")
    print("|---|---|---|")
    for name, distinct in (
        ("four photographs, eight masks, five prompts", False),
        ("all of them distinct", True),
    ):
        place = folder / str(distinct)
        place.mkdir()
        manifest = write_rows(place, asked.rows, distinct=distinct)
        seconds, _ = run(command(manifest, folder / "none", asked, "--workers", "1", "--dry-run"))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        print(f"| {name} | {seconds:.1f} | {peak:.0f} |", flush=True)


def main() -> None:
    """Run a part in a folder of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["kills", "workers", "check"])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--kinds", default="one worker,two workers,two actors on Ray")
    asked = parser.parse_args()
    asked.rows = asked.rows or (100_000 if asked.part == "check" else 500)
    with tempfile.TemporaryDirectory() as folder:
        {"kills": kills, "workers": workers, "check": check}[asked.part](Path(folder), asked)


if __name__ == "__main__":
    main()
