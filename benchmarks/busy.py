"""Training on the CPU while other programs use its cores: ours beside bare PyTorch, timm and Lightning.

    .venv/bin/python benchmarks/busy.py

Each side trains a small transformer on batches from memory, in a process of its own with a thread for
each core, while 0, 1, … programs each keep one core busy. A side is compared with itself on the idle machine;
sides take turns in random order. Ours is measured as `neuscale train` runs it: how threads wait is
adapted by `neuscale.contention`; a short training first leaves it time to do so. Writes
`benchmarks/results/busy.csv`.
"""

import argparse
import logging
import random
import statistics
import subprocess
import sys
import time
import warnings

import loop
import torch
import torch.nn.functional as F
from table import cpu_name, write_table

from neuscale.config import compose_config
from neuscale.contention import adaptive_waiting
from neuscale.hardware import available_cores

SECONDS, BUSY = 5.0, (0, 1, 2)


def timm_loop() -> float:
    """A bare loop over timm's vision transformer, of about the size of the others' model."""
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=48, depth=4, num_heads=3, num_classes=10
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    data = loop.batches()
    began = time.perf_counter()
    for images, labels in data:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def ours() -> float:
    size = [f"train.global_batch_size={loop.BATCH}", f"train.max_steps={loop.STEPS}"]
    return loop.ours(compose_config([*loop.PLAIN, *size, "tracking.trackers=[]"]))


SIDES = {
    "bare PyTorch": loop.bare,
    "timm": timm_loop,
    "lightning": loop.lightning_loop,
    "neuscale": ours,
}


# The batch of the quickstart, and one so small that threads meet four times as often.
CASES = [(name, 128, busy) for name in SIDES for busy in BUSY]
CASES += [(name, 32, busy) for name in ("bare PyTorch", "neuscale") for busy in BUSY]


def measure_here(name: str, batch: int) -> float:
    """Images a second: the median of short trainings, for at least SECONDS, after a warm-up."""
    torch.set_num_threads(available_cores())
    loop.BATCH, loop.STEPS = batch, 3200 // batch

    def run(seconds: float) -> list[float]:
        times: list[float] = []
        while sum(times) < seconds or len(times) < 2:
            times.append(SIDES[name]())
        return times

    if name != "neuscale":
        run(SECONDS / 2)
        return loop.STEPS * loop.BATCH / statistics.median(run(SECONDS))
    with adaptive_waiting(lambda _: None):
        run(SECONDS / 2)
        return loop.STEPS * loop.BATCH / statistics.median(run(SECONDS))


def measure(rounds: int) -> list[dict[str, str]]:
    rates: dict[tuple[str, int, int], list[float]] = {case: [] for case in CASES}
    for turn in range(rounds):
        order = list(CASES)
        random.Random(turn).shuffle(order)
        for name, batch, busy in order:
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                command = [sys.executable, __file__, "--side", name, "--batch", str(batch)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            finally:
                for other in others:
                    other.kill()
                    other.wait()
            rates[name, batch, busy].append(float(done.stdout.split()[-1]))
            print(f"{turn + 1}: {name}, {batch}, {busy} busy: {rates[name, batch, busy][-1]:.0f}", flush=True)
    medians = {case: statistics.median(values) for case, values in rates.items()}
    return [
        {
            "machine": f"{cpu_name()}, {available_cores()} cores",
            "torch": torch.__version__,
            "loop": name,
            "batch_size": str(batch),
            "busy_cores": str(busy),
            "images_per_second": f"{medians[name, batch, busy]:.0f}",
            "lowest": f"{min(rates[name, batch, busy]):.0f}",
            "highest": f"{max(rates[name, batch, busy]):.0f}",
            "of_idle": f"{medians[name, batch, busy] / medians[name, batch, 0]:.2f}",
        }
        for name, batch, busy in CASES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure this one here, and print its images a second")
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if given.side:
        print(measure_here(given.side, given.batch))
    else:
        write_table("busy", measure(given.rounds))


if __name__ == "__main__":
    main()
