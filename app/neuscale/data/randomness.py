"""Random numbers as a function: of the seed, the epoch, the purpose and the position.

Nothing here keeps a state, so nothing needs to be restored when a run goes on, and the
number of processes has no say. The streams are Philox (Salmon et al. 2011) keyed
through NumPy's SeedSequence; NumPy guarantees both to give the same bits in every
version (NEP 19).
"""

import zlib

import numpy as np
from numpy.typing import NDArray


def raw_draws(seed: int, epoch: int, purpose: str, count: int) -> NDArray[np.uint64]:
    """`count` words of 64 random bits; number i belongs to position i of the epoch's order."""
    sequence = np.random.SeedSequence([seed, epoch, zlib.crc32(purpose.encode())])
    key = sequence.generate_state(2, np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def uniform_draws(seed: int, epoch: int, purpose: str, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1)."""
    return (raw_draws(seed, epoch, purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integer_draws(seed: int, epoch: int, purpose: str, count: int, below: int) -> NDArray[np.int64]:
    """`count` whole numbers in [0, below)."""
    return (uniform_draws(seed, epoch, purpose, count) * below).astype(np.int64)


def derived_seed(seed: int, step: int, purpose: str) -> int:
    """A seed for a generator that lives for one step, such as dropout's."""
    sequence = np.random.SeedSequence([seed, step, zlib.crc32(purpose.encode())])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
