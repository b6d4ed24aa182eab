"""Order and randomness of training, as pure functions of (seed, epoch or step, position, purpose).

Nothing depends on the number of ranks, workers or restarts: the same global batch has the same
images, with the same random choices, on any number of ranks.
"""

import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from neuscale.errors import UsageError

# Positions in an epoch's order: a slice with start and stop, or a number n for 0 … n - 1.
Positions = int | slice


def first_and_count(positions: Positions) -> tuple[int, int]:
    """First position and number of positions."""
    if isinstance(positions, int):
        return 0, positions
    return positions.start, positions.stop - positions.start


@lru_cache(maxsize=1024)
def _key(seed: int, epoch: int, purpose: str) -> tuple[int, int]:
    sequence = np.random.SeedSequence([seed, epoch, zlib.crc32(purpose.encode())])
    first, second = sequence.generate_state(2, np.uint64).tolist()
    return first, second


def raw_draws(seed: int, epoch: int, purpose: str, positions: Positions) -> NDArray[np.uint64]:
    """A random 64-bit word for each of `positions`, at a cost that depends on their number only.

    Words come from a counter-based generator (Philox4x64, Salmon et al. 2011): a block of four is a function
    of the key and of the block's number.
    """
    first, count = first_and_count(positions)
    blocks, skipped = divmod(first, 4)
    generator = np.random.Philox(key=np.array(_key(seed, epoch, purpose), np.uint64))
    generator.advance(blocks)
    return generator.random_raw(skipped + count)[skipped:]


def uniform_draws(seed: int, epoch: int, purpose: str, positions: Positions) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each of `positions`."""
    return (raw_draws(seed, epoch, purpose, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integer_draws(seed: int, epoch: int, purpose: str, positions: Positions, below: int) -> NDArray[np.int64]:
    """A uniform integer in [0, below) for each of `positions`."""
    return (uniform_draws(seed, epoch, purpose, positions) * below).astype(np.int64)


def derived_seed(seed: int, step: int, purpose: str) -> int:
    """Seed for a generator that is used for one step, such as dropout's."""
    sequence = np.random.SeedSequence([seed, step, zlib.crc32(purpose.encode())])
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of an epoch: element i is the index of the image at position i. Shape [count]."""
    return np.argsort(raw_draws(seed, epoch, "order", count), kind="stable").astype(np.int64)


def balanced_order(seed: int, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order of an epoch in which all classes have the same number of positions, up to a difference of one.

    Images of a class are repeated in rounds, each in a new random order; in a small class they are used
    several times, while only part of a large class may be used. `labels` int64 [N]; shape [N].
    """
    count, present = len(labels), np.unique(labels)
    # The positions left over go to different classes in each epoch.
    ranks = np.argsort(raw_draws(seed, epoch, "balance rest", len(present)), kind="stable")
    shares = np.full(len(present), count // len(present))
    shares[ranks[: count % len(present)]] += 1
    chosen = []
    for label, share in zip(present, shares, strict=True):
        members = np.flatnonzero(labels == label)
        turns = -(-int(share) // len(members))
        draws = raw_draws(seed, epoch, f"balance class {label}", turns * len(members))
        orders = np.argsort(draws.reshape(turns, len(members)), axis=1, kind="stable")
        chosen.append(members[orders.reshape(-1)[:share]])
    return np.concatenate(chosen)[permutation(seed, epoch, count)]


def steps_per_epoch(count: int, global_batch_size: int) -> int:
    """Number of whole global batches in an epoch; the images left over differ between epochs.

    Raises UsageError if there are fewer images than in one batch.
    """
    if global_batch_size > count:
        raise UsageError(
            f"train.global_batch_size={global_batch_size} is more than the {count} training images.",
            "Choose a smaller batch.",
        )
    return count // global_batch_size


def check_shares(global_batch_size: int, processes: int) -> None:
    """Raise UsageError if a global batch does not divide evenly over the ranks."""
    if global_batch_size % processes:
        near = max(processes, round(global_batch_size / processes) * processes)
        raise UsageError(
            f"train.global_batch_size={global_batch_size} does not divide into {processes} processes.",
            f"The nearest that does: train.global_batch_size={near}.",
        )


def micro_batches(
    step: int, global_batch_size: int, rank: int, processes: int, accumulation_steps: int
) -> list[slice]:
    """The positions in the epoch's order that a rank computes in a step, one slice per micro-batch.

    `step` is counted from the beginning of the epoch.
    """
    share = global_batch_size // processes
    micro = share // accumulation_steps
    first = step * global_batch_size + rank * share
    return [slice(first + i * micro, first + (i + 1) * micro) for i in range(accumulation_steps)]


def evaluation_batches(count: int, batch_size: int, rank: int, processes: int) -> list[slice]:
    """This rank's slices; over all ranks they cover 0 … count - 1, each position exactly once.

    The shares differ by at most one image, without padding; a rank may have none.
    """
    first, last = count * rank // processes, count * (rank + 1) // processes
    return [slice(i, min(i + batch_size, last)) for i in range(first, last, batch_size)]
