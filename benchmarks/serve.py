"""`neuscale serve` under load on loopback, compared with the bare model in one process.

    .venv/bin/python benchmarks/serve.py RUN [--requests 2000]

The server is a process of its own; clients are threads of this one, each with a connection that it keeps,
which sends the next image when it has its answer. The bare model is called in this process before the server
starts: one image at a time, and batches of 32; it decodes the same files. Requests are bounded in
number, and go to 127.0.0.1 only. On a machine of two cores the clients take part of what they measure.
Writes `benchmarks/results/serve.csv`.
"""

import argparse
import http.client
import io
import re
import statistics
import subprocess
import sys
import threading
import time
from itertools import count

import numpy as np
import torch
from PIL import Image
from table import cpu_name, write_table

from neuscale.hardware import available_cores
from neuscale.inference.restore import Restored, restore
from neuscale.progress import Silent
from neuscale.runs.folder import find_run
from neuscale.serving.model import ServedModel, served_run

CLIENTS = (1, 4, 16, 64)
BATCH = 32


def files(restored: Restored, wanted: int = 256) -> list[bytes]:
    """Validation images as PNG files."""
    found = []
    for index in np.linspace(0, restored.data.meta.counts["val"] - 1, wanted).astype(int):
        pixels = restored.data.image("val", int(index))
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def bare(model: ServedModel, contents: list[bytes], batch: int, requests: int) -> list[float]:
    """Seconds of each call on a batch, decoding included."""
    times = []
    for first in range(-10 * batch, requests, batch):
        start = time.perf_counter()
        images = torch.stack([model.decode(contents[(first + i) % len(contents)]) for i in range(batch)])
        model.logits(images)
        if first >= 0:
            times.append(time.perf_counter() - start)
    return times


def load(port: int, contents: list[bytes], clients: int, requests: int) -> tuple[list[float], float]:
    """Seconds of each request, and of all of them together."""
    numbers, times, lock = count(), [], threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        mine = []
        while (number := next(numbers)) < requests:
            start = time.perf_counter()
            connection.request("POST", "/predict", contents[number % len(contents)])
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            mine.append(time.perf_counter() - start)
        with lock:
            times.extend(mine)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, time.perf_counter() - start


def row(what: str, clients: int, times: list[float], images_per_second: float, of: float) -> dict[str, str]:
    return {
        "what": what,
        "clients": str(clients),
        "p50_ms": f"{statistics.median(times) * 1e3:.2f}",
        "p99_ms": f"{np.percentile(times, 99) * 1e3:.2f}",
        "images_per_second": f"{images_per_second:.0f}",
        "of_bare_batches": f"{images_per_second / of:.2f}",
        "machine": f"{cpu_name()}, {available_cores()} cores, torch {torch.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    run = find_run(options.run)
    restored = restore(run, "best", "auto", "cpu", Silent(), stage=False)
    model, contents = served_run(restored), files(restored)
    single, batches = (bare(model, contents, size, options.requests) for size in (1, BATCH))
    fastest = BATCH / statistics.median(batches)
    rows = [
        row("bare model, one image", 1, single, 1 / statistics.median(single), fastest),
        row(f"bare model, batches of {BATCH}", 1, batches, fastest, fastest),
    ]
    command = [sys.executable, "-m", "neuscale", "serve", str(run.path), "--device", "cpu", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline() + server.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", address)
        assert found is not None, address
        for clients in CLIENTS:
            load(int(found[1]), contents, clients, options.requests // 10)
            times, seconds = load(int(found[1]), contents, clients, options.requests)
            rows.append(row("neuscale serve", clients, times, options.requests / seconds, fastest))
        server.terminate()
    write_table("serve", rows)


if __name__ == "__main__":
    main()
