"""Equal and nearly equal images within and across the splits of a data set.

Nearly equal images have 64-bit difference hashes (N. Krawetz, "Kind of Like That", 2013) that differ in at
most three bits, and similar thumbnails: copies that were scaled, compressed or brightened slightly.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from neuscale.data.datasets import Dataset
from neuscale.hardware import available_cores
from neuscale.progress import Progress

_BATCH = 512

_THUMBNAIL = 16  # side in pixels

# 64 bits in four bands: two hashes that differ in at most three bits have at least one band in common.
_BANDS, _BAND_BITS, _MOST_BITS = 4, 16, 3

# Largest mean difference of thumbnail pixels (0 … 255); above it, two images only have similar outlines.
_MOST_DIFFERENCE = 8.0

_FLATTEST = 4.0  # standard deviation of the pixels below which an image has no outlines to compare

# A bucket has the images whose hashes share a band. In a larger one (scans of empty pages) only neighbours
# are compared.
_LARGEST_BUCKET = 2000


@dataclass(frozen=True)
class Prints:
    """Position, pixel digest, thumbnail and gray statistics of each image of all splits, in order.

    `splits` [N] indexes the data set's splits, `samples` [N] the images of a split; `thumbnails` uint8
    [N, 16, 16] are gray, `hashes` uint64 [N]; `mean`, `deviation` float32 [N] are of the gray pixels.
    """

    splits: NDArray[np.int64]
    samples: NDArray[np.int64]
    labels: NDArray[np.int64]
    digests: list[bytes]
    thumbnails: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]


def prints_of(data: Dataset, progress: Progress) -> Prints:
    """Compute the prints by reading every image once. Raises DataError if one cannot be read."""
    splits: list[int] = []
    samples: list[int] = []
    digests: list[bytes] = []
    rest: list[_Measured] = []
    with ThreadPoolExecutor(available_cores()) as pool:
        for place, split in enumerate(data.meta.splits):
            count = data.meta.counts[split]
            with progress.task(f"looking at {split}", count, "img") as task:
                for first in range(0, count, _BATCH):
                    chosen = range(first, min(first + _BATCH, count))
                    images = list(pool.map(lambda i, split=split: data.image(split, i), chosen))
                    digests += pool.map(_digest, images)
                    rest += (
                        [_measured(images)] if _alike(images) else [_measured([image]) for image in images]
                    )
                    splits += [place] * len(chosen)
                    samples += chosen
                    task.advance(len(chosen))
    labels = np.concatenate([data.labels(split) for split in data.meta.splits])
    thumbnails, hashes, mean, deviation = (np.concatenate(each) for each in zip(*rest, strict=True))
    return Prints(np.array(splits), np.array(samples), labels, digests, thumbnails, hashes, mean, deviation)


def equal_images(prints: Prints) -> list[list[int]]:
    """Groups of images with the same pixels, as indices into `prints`, in its order."""
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(prints.digests):
        groups[digest].append(index)
    return [group for group in groups.values() if len(group) > 1]


def similar_images(prints: Prints) -> list[list[int]]:
    """Groups of nearly equal images, each similar to another of its group; equal images count once."""
    first: dict[bytes, int] = {}
    for index, digest in enumerate(prints.digests):
        first.setdefault(digest, index)
    kept = np.array(sorted(first.values()))
    kept = kept[prints.deviation[kept] >= _FLATTEST]
    parents = {int(index): int(index) for index in kept}

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for one, other in _similar_pairs(prints, kept):
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index in parents:
        groups[root(index)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _similar_pairs(prints: Prints, kept: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    thumbnails = prints.thumbnails.reshape(len(prints.thumbnails), -1).astype(np.int16)
    for band in range(_BANDS):
        keys = (prints.hashes[kept] >> np.uint64(band * _BAND_BITS)) & np.uint64((1 << _BAND_BITS) - 1)
        order = np.argsort(keys, kind="stable")
        ends = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(kept[order], ends):
            if len(bucket) < 2:
                continue
            bucket = bucket[np.argsort(prints.hashes[bucket], kind="stable")]
            reach = len(bucket) if len(bucket) <= _LARGEST_BUCKET else 8
            for place, index in enumerate(bucket[:-1]):
                others = bucket[place + 1 : place + 1 + reach]
                others = others[_bits(prints.hashes[others] ^ prints.hashes[index]) <= _MOST_BITS]
                difference = np.abs(thumbnails[others] - thumbnails[index]).mean(1)
                for other in others[difference <= _MOST_DIFFERENCE]:
                    yield int(index), int(other)


_COUNTS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Number of one bits in each value."""
    return _COUNTS[np.ascontiguousarray(values).view(np.uint8).reshape(len(values), 8)].sum(1, dtype=np.int64)


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(
        np.ascontiguousarray(image).data, digest_size=16, key=str(image.shape).encode()
    ).digest()


def _alike(images: list[NDArray[np.uint8]]) -> bool:
    return len({image.shape for image in images}) == 1


_Measured = tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.float32], NDArray[np.float32]]


def _measured(images: list[NDArray[np.uint8]]) -> _Measured:
    """Thumbnails, hashes, means and deviations of images of one shape [C, H, W]."""
    stacked = torch.from_numpy(np.stack(images)).float()
    weights = torch.tensor([0.299, 0.587, 0.114]) if stacked.shape[1] == 3 else torch.ones(stacked.shape[1])
    gray = (stacked * weights[:, None, None]).sum(1, keepdim=True) / weights.sum()
    thumbnails = F.adaptive_avg_pool2d(gray, _THUMBNAIL)[:, 0].round().to(torch.uint8).numpy()
    small = F.adaptive_avg_pool2d(gray, (8, 9))[:, 0]
    ones = (small[:, :, 1:] > small[:, :, :-1]).flatten(1).numpy()
    hashes = np.packbits(ones, axis=1).view(np.uint64)[:, 0]
    flat = gray.flatten(1)
    return thumbnails, hashes, flat.mean(1).numpy(), flat.std(1, correction=0).numpy()
