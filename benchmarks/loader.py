"""Batches of CIFAR-10, cropped, mirrored and normalised to float32: this loader and its peers, in one run.

    .venv/bin/python benchmarks/loader.py

Needs CIFAR-10 prepared. Each side makes whole batches of 128 for a few seconds after a
warm-up, the sides taking turns; the table has the median of the rounds. Writes
`benchmarks/results/loader.csv`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from table import cpu_name, write_table
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms
from torchvision.transforms import v2

from neuscale.cluster.cores import available_cores
from neuscale.config.schema import AugmentConfig
from neuscale.data.loader import Share
from neuscale.data.packed import PackedDataset, packed_path
from neuscale.data.resident import ResidentLoader

BATCH = 128


def torchvision_cifar10(data: PackedDataset, transform: Callable[..., Any]) -> Dataset[Any]:
    """torchvision's own CIFAR10 class on our pixels: its archive need not be there."""
    peer = datasets.CIFAR10.__new__(datasets.CIFAR10)
    peer.data = np.ascontiguousarray(data.images("train").transpose(0, 2, 3, 1))
    peer.targets = data.labels("train").tolist()
    peer.transform, peer.target_transform = transform, None
    peer.train = True
    return peer


def endless(make: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    while True:
        yield from make()


def dataloader(data: PackedDataset, transform: Callable[..., Any], workers: int) -> Iterator[Any]:
    loader = DataLoader(
        torchvision_cifar10(data, transform),
        BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    return endless(lambda: iter(loader))


def resident(data: PackedDataset) -> Iterator[Any]:
    loader = ResidentLoader(data, "train", None, torch.device("cpu"), Share())
    augment = AugmentConfig(crop_padding=4, horizontal_flip=0.5)
    steps = len(loader) // BATCH
    epochs = iter(range(10**9))
    return endless(lambda: loader.training(augment, 0, next(epochs), 0, steps, BATCH))


def rate(batches: Iterator[Any], seconds: float) -> float:
    """Images a second."""
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        count += BATCH
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    data = PackedDataset.open(packed_path("cifar10"))
    mean, std = data.meta.mean, data.meta.std
    pil = transforms.Compose(
        [
            transforms.RandomCrop(32, 4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    tensors = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomCrop(32, 4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    cores = available_cores()
    torch.set_num_threads(cores)
    sides = {
        f"torchvision PIL, DataLoader, {cores} workers": dataloader(data, pil, cores),
        f"torchvision v2, DataLoader, {cores} workers": dataloader(data, tensors, cores),
        "neuscale resident": resident(data),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for batches in sides.values():
        rate(batches, 1.0)
    for _ in range(given.rounds):
        for name, batches in sides.items():
            rates[name].append(rate(batches, given.seconds))
    base = statistics.median(next(iter(rates.values())))
    rows = [
        {
            "machine": f"{cpu_name()}, {cores} cores",
            "torch": torch.__version__,
            "loader": name,
            "images_per_second": f"{statistics.median(values):.0f}",
            "lowest": f"{min(values):.0f}",
            "highest": f"{max(values):.0f}",
            "ratio": f"{statistics.median(values) / base:.1f}",
        }
        for name, values in rates.items()
    ]
    write_table("loader", rows)


if __name__ == "__main__":
    main()
