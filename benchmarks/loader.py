"""Loading of CIFAR-10 batches, cropped, flipped and normalised to float32: our loaders against others.

    .venv/bin/python benchmarks/loader.py

Requires CIFAR-10 prepared, and the native ops (`make ops`). After a warm-up, the loaders take
turns, and each makes batches of 128 for a few seconds per round; the table has the medians over the
rounds. For "from disk", the packed file is dropped from the page cache before each round, which
then reads one epoch. Writes `benchmarks/results/loader.csv`.
"""

import argparse
import mmap
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import timm.data
import torch
from table import cpu_name, write_table
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms
from torchvision.transforms import v2

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.crops import Normalize
from neuscale.data.formats.packed import PackedDataset, images_file, packed_path
from neuscale.data.loaders.resident import ResidentLoader
from neuscale.data.loaders.streaming import StreamLoader
from neuscale.distributed.rank import Rank
from neuscale.hardware import available_cores

BATCH = 128


def torchvision_cifar10(data: PackedDataset, transform: Callable[..., Any]) -> Dataset[Any]:
    """torchvision's CIFAR10 data set with our pixels, so that its archive is not needed."""
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


def timm_loader(data: PackedDataset, workers: int) -> Iterator[Any]:
    """timm's loader: its collate and batched normalisation, with CIFAR's transforms for each image."""
    meta = data.meta
    loader = timm.data.create_loader(
        torchvision_cifar10(data, lambda image: image),
        (3, 32, 32),
        BATCH,
        is_training=True,
        mean=tuple(meta.mean),
        std=tuple(meta.std),
        num_workers=workers,
        device=torch.device("cpu"),
    )
    loader.dataset.transform = transforms.Compose(
        [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), timm.data.transforms.ToNumpy()]
    )
    return endless(lambda: iter(loader))


def ours(
    data: PackedDataset, kind: type[ResidentLoader] | type[StreamLoader], native: bool = True
) -> Iterator[Any]:
    loader = kind(data, "train", None, torch.device("cpu"), Rank())
    if not native:
        loader._normalize = Normalize(loader.mean, loader.std)
    augment = AugmentConfig(crop_padding=4, horizontal_flip=0.5)
    steps = len(loader) // BATCH
    epochs = iter(range(10**9))
    return endless(lambda: loader.training(augment, 0, next(epochs), 0, steps, BATCH))


def drop_pages(data: PackedDataset) -> None:
    """Drop the training images from the page cache, so that the next read waits for the disk."""
    data.images("train")._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    with (data.folder / images_file("train")).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epoch_from_disk(data: PackedDataset) -> float:
    """Images per second over one epoch that starts with a cold page cache."""
    drop_pages(data)
    batches = ours(data, StreamLoader)
    steps = data.meta.counts["train"] // BATCH
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * BATCH / (time.perf_counter() - began)


def rate(batches: Iterator[Any], seconds: float) -> float:
    """Images per second, measured for `seconds`."""
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
        f"timm, {cores} workers": timm_loader(data, cores),
        "neuscale resident, without the native op": ours(data, ResidentLoader, native=False),
        "neuscale resident": ours(data, ResidentLoader),
        "neuscale stream": ours(data, StreamLoader),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for batches in sides.values():
        rate(batches, 1.0)
    from_disk: list[float] = []
    for _ in range(given.rounds):
        for name, batches in sides.items():
            rates[name].append(rate(batches, given.seconds))
        from_disk.append(epoch_from_disk(data))
    rates["neuscale stream, from disk"] = from_disk
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
