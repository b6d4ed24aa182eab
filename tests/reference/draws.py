"""Random numbers as functions of (seed, epoch or step, purpose): Philox, keyed by NumPy's SeedSequence."""

import zlib

import numpy as np
from numpy.typing import NDArray


def sequence(seed: int, epoch: int, purpose: str) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, epoch, zlib.crc32(purpose.encode("ascii"))])


def words(seed: int, epoch: int, purpose: str, count: int) -> NDArray[np.uint64]:
    """`count` random integers of 64 bits."""
    key = sequence(seed, epoch, purpose).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).bit_generator.random_raw(count)


def uniform(seed: int, epoch: int, purpose: str, count: int) -> NDArray[np.float64]:
    """Upper 53 bits of each word as a fraction in [0, 1)."""
    return np.array([int(word) // 2**11 / 2**53 for word in words(seed, epoch, purpose, count)])


def integers(seed: int, epoch: int, purpose: str, count: int, below: int) -> list[int]:
    return [int(u * below) for u in uniform(seed, epoch, purpose, count)]


def order(seed: int, epoch: int, count: int) -> list[int]:
    """Image index at each position of an epoch: indices sorted by a random key."""
    keys = words(seed, epoch, "order", count).tolist()
    return sorted(range(count), key=keys.__getitem__)


def generator_seed(seed: int, step: int, purpose: str) -> int:
    """Seed of a generator for one step, 63 bits."""
    return int(sequence(seed, step, purpose).generate_state(1, np.uint64)[0]) // 2
