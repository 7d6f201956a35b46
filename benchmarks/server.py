"""How `bld serve` stands a crowd: `python benchmarks/server.py [--model mini]`, on the machine it runs on.

Sixteen clients send two hundred edits to a queue of eight, and one that is refused asks again until it
is accepted. What is said: how often the server refused, how long /healthz took meanwhile, and how the
server's memory went.
"""

import argparse
import io
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import httpx2
import numpy as np
import openai
from PIL import Image
from skimage import data

CLIENTS, REQUESTS, QUEUE = 16, 200, 8
PATIENCE = 0.2  # s, between being refused and asking again


def pictures() -> tuple[bytes, bytes]:
    """A photograph of 256 px, and the same with a hole."""
    photo = np.asarray(Image.fromarray(data.coffee()).resize((256, 256)))
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[96:176, 96:176] = 0
    files = []
    for pixels in (photo, np.dstack([photo, alpha])):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    return files[0], files[1]


def memory(url: str) -> float:
    """The server's resident memory, MB."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("process_resident_memory")) / 1e6


def main() -> None:
    """Start the server, send, watch, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    serve = [sys.executable, "-m", "bld.apps.cli", "serve", "--model", asked.model, "--port", "0"]
    image, mask = pictures()
    health: list[float] = []
    stop = threading.Event()
    with subprocess.Popen(
        [*serve, "--queue", str(QUEUE)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def edit(number: int) -> list[int]:
            """The statuses of one edit, the last of which is not 429."""
            body, statuses = {"seed": number, "steps": asked.steps, "candidates": 1}, []
            while not statuses or statuses[-1] == 429:
                try:
                    client.images.edit(image=image, mask=mask, prompt="a red apple", extra_body=body)
                    statuses.append(200)
                except openai.APIStatusError as error:
                    statuses.append(error.status_code)
                    time.sleep(PATIENCE)
            return statuses

        def watch() -> None:
            with httpx2.Client() as probe:
                while not stop.wait(0.05):
                    started = time.perf_counter()
                    probe.get(f"{url}/healthz")
                    health.append((time.perf_counter() - started) * 1000)

        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(edit, range(CLIENTS)))  # what is allocated once
            before, started = memory(url), time.perf_counter()
            watcher = threading.Thread(target=watch)
            watcher.start()
            statuses = Counter(chain(*clients.map(edit, range(REQUESTS))))
            seconds = time.perf_counter() - started
            stop.set()
            watcher.join()
            after = memory(url)
        client.close()
        server.terminate()
    quantile = statistics.quantiles(health, n=100)
    print(f"| {REQUESTS} requests, {CLIENTS} clients, queue {QUEUE} | {asked.model}, {asked.steps} steps |")
    print("|---|---|")
    print(
        f"| answered, refused with 429 before, any other status | {statuses[200]}, {statuses[429]}, "
        f"{statuses.total() - statuses[200] - statuses[429]} |"
    )
    print(f"| seconds in all | {seconds:.1f} |")
    print(
        f"| /healthz, ms: median, 99 %, worst of {len(health)} | {quantile[49]:.1f}, {quantile[98]:.1f}, "
        f"{max(health):.1f} |"
    )
    print(f"| resident memory before and after, MB | {before:.0f}, {after:.0f} |")
    print(f"| exit code after SIGTERM | {server.returncode} |")


if __name__ == "__main__":
    main()
