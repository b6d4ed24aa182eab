"""Time and memory until the first batch of an epoch can be read: its order, and its random choices.

    .venv/bin/python benchmarks/epoch_start.py

No images are read: the sizes are those of data sets that do not fit here. Random choices are those of
one rank of eight, for crops and flips with Mixup and CutMix, which need the whole global batch of
1,024. Each size is measured in a process of its own. Writes `benchmarks/results/epoch_start.csv`.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import torch
from table import cpu_name, write_table

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.pipeline import draw_augmentation
from neuscale.data.sampling import permutation

SIZES = (50_000, 1_000_000, 30_000_000)
AUGMENT = AugmentConfig(crop_padding=4, horizontal_flip=0.5, mixup_alpha=0.2, cutmix_alpha=1.0)


def seconds(act: object, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_here(count: int) -> None:
    def draw() -> None:
        at = slice(count // 2 - count // 2 % 1024, count // 2 - count // 2 % 1024 + 1024)
        draw_augmentation(AUGMENT, 0, 1, at, 1024, (224, 224), torch.device("cpu"))

    draw()
    before = peak()
    drawn = seconds(draw, 20)
    draws_peak = peak() - before
    ordered = seconds(lambda: permutation(0, 1, count), 3)
    print(drawn, draws_peak, ordered, peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, help="measure this number of images here")
    given = parser.parse_args()
    if given.size:
        measure_here(given.size)
        return
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--size", str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        drawn, draws_peak, ordered, order_peak = map(float, done.stdout.split())
        rows.append(
            {
                "machine": cpu_name(),
                "images": str(size),
                "draws_ms": f"{drawn * 1e3:.2f}",
                "draws_mb": f"{draws_peak:.0f}",
                "order_ms": f"{ordered * 1e3:.1f}",
                "order_mb": f"{order_peak:.0f}",
            }
        )
    write_table("epoch_start", rows)


if __name__ == "__main__":
    main()
