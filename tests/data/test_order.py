"""Order of an epoch and its split into batches, which make a run the same on one GPU and on four."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuscale.data.sampling import (
    check_shares,
    derived_seed,
    evaluation_batches,
    integer_draws,
    micro_batches,
    permutation,
    steps_per_epoch,
    uniform_draws,
)
from neuscale.errors import UsageError

FROZEN_ORDER = [0, 2, 3, 6, 5, 8, 4, 1, 7, 9]
FROZEN_DIGEST = "ca237e1906bbfec671514ab079ad98340d978eaee0fb02355252f09c2ff1670e"
FROZEN_SEED = 3777822529718431387
FROZEN_DRAWS = [2, 1, 3, 6, 5, 4]

seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 10_000)


@given(seed=seeds, epoch=epochs, count=st.integers(0, 2000))
def test_an_epoch_shows_every_image_once(seed: int, epoch: int, count: int) -> None:
    assert sorted(permutation(seed, epoch, count)) == list(range(count))


@given(seed=seeds, epoch=epochs)
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int) -> None:
    order = permutation(seed, epoch, 200)
    assert not np.array_equal(order, permutation(seed, epoch + 1, 200))
    assert not np.array_equal(order, permutation((seed + 1) % 2**63, epoch, 200))


def test_the_order_is_the_same_in_a_year() -> None:
    """Replays depend on these exact numbers; changing them makes all earlier runs unrepeatable."""
    assert permutation(0, 0, 10).tolist() == FROZEN_ORDER
    digest = hashlib.sha256(permutation(1234, 5, 100_000).tobytes()).hexdigest()
    assert digest == FROZEN_DIGEST
    assert derived_seed(7, 11, "dropout 0") == FROZEN_SEED
    assert integer_draws(3, 4, "crop top", 6, 9).tolist() == FROZEN_DRAWS


@given(
    processes=st.sampled_from([1, 2, 3, 4, 8]),
    accumulation=st.sampled_from([1, 2, 4]),
    micro=st.integers(1, 5),
    step=st.integers(0, 50),
)
def test_any_number_of_processes_shares_the_same_global_batch(
    processes: int, accumulation: int, micro: int, step: int
) -> None:
    batch = processes * accumulation * micro
    seen = [
        position
        for rank in range(processes)
        for part in micro_batches(step, batch, rank, processes, accumulation)
        for position in range(part.start, part.stop)
    ]
    assert seen == list(range(step * batch, (step + 1) * batch))
    parts = micro_batches(step, batch, 0, processes, accumulation)
    assert {part.stop - part.start for part in parts} == {micro}


@given(count=st.integers(0, 300), batch=st.integers(1, 64), processes=st.integers(1, 9))
def test_evaluation_covers_every_image_exactly_once(count: int, batch: int, processes: int) -> None:
    shares = [
        [
            position
            for part in evaluation_batches(count, batch, rank, processes)
            for position in range(part.start, part.stop)
        ]
        for rank in range(processes)
    ]
    assert sorted(position for share in shares for position in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    sizes = [part.stop - part.start for part in evaluation_batches(count, batch, 0, processes)]
    assert all(0 < size <= batch for size in sizes)


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    top, left = uniform_draws(0, 0, "crop top", 100_000), uniform_draws(0, 0, "crop left", 100_000)
    assert top.min() >= 0 and top.max() < 1
    assert abs(top.mean() - 0.5) < 0.005
    assert abs(np.corrcoef(top, left)[0, 1]) < 0.02
    assert set(integer_draws(0, 0, "crop top", 1000, 9).tolist()) == set(range(9))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    assert steps_per_epoch(100, 100) == 1
    assert steps_per_epoch(199, 100) == 1
    with pytest.raises(UsageError, match="global_batch_size=101 is more than the 100"):
        steps_per_epoch(100, 101)


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does() -> None:
    check_shares(128, 4)
    with pytest.raises(UsageError) as caught:
        check_shares(100, 3)
    suggested = int(caught.value.fix.rpartition("=")[2].rstrip("."))
    check_shares(suggested, 3)


@pytest.mark.parametrize(
    ("batch", "processes", "nearest"), [(100, 3, 99), (101, 3, 102), (1, 4, 4), (250, 8, 248), (255, 8, 256)]
)
def test_the_batch_that_is_suggested_is_the_nearest(batch: int, processes: int, nearest: int) -> None:
    with pytest.raises(UsageError, match=rf"(?s)={batch} does not divide into {processes} .*={nearest}\.$"):
        check_shares(batch, processes)
