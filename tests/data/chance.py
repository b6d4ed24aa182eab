"""What tests of random draws share: chi-square and Kolmogorov's test by hand, with generous bounds.

All seeds are fixed, so each of these tests always gives the same answer. A bound is seven standard
deviations of the statistic above its mean: sound draws stay far below it.
"""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]


def _within_chance(statistic: float, degrees: int) -> bool:
    return statistic < degrees + 7 * math.sqrt(2 * degrees)


def assert_uniform(cells: Values, count: int) -> None:
    """The whole numbers `cells` are equally often each of 0 … count - 1."""
    cells = np.asarray(cells)
    assert cells.min() >= 0 and cells.max() < count
    expected = len(cells) / count
    assert expected >= 5, "too few draws for a test"
    found = np.bincount(cells, minlength=count)
    statistic = float(((found - expected) ** 2 / expected).sum())
    assert _within_chance(statistic, count - 1), found


def assert_independent(one: Values, other: Values) -> None:
    """Two lists of whole numbers say nothing about each other (chi-square of their table)."""
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1))
    np.add.at(table, (one, other), 1)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert expected.min() >= 5, "too few draws for a test"
    assert min(table.shape) > 1, "one of them is constant"
    statistic = float(((table - expected) ** 2 / expected).sum())
    assert _within_chance(statistic, (table.shape[0] - 1) * (table.shape[1] - 1)), statistic


def assert_all_independent(values: dict[str, Values], bins: int = 8) -> None:
    """Every pair of these is independent; each is first cut into bins of as many draws."""
    cells = {name: quantile_cells(drawn, bins) for name, drawn in values.items()}
    for (one, a), (other, b) in combinations(cells.items(), 2):
        try:
            assert_independent(a, b)
        except AssertionError as error:
            raise AssertionError(f"{one} and {other}: {error}") from None


def quantile_cells(values: Values, bins: int = 8) -> NDArray[np.int64]:
    """The bin of each value, where all bins hold about the same number; equal values share one."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.digitize(values, edges).astype(np.int64)


def assert_distributed(values: Values, distribution: Callable[[Values], Values], slack: float = 0.0) -> None:
    """The largest distance from the distribution function is one of chance; `slack` for rounded values."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    at = distribution(ordered)
    distance = max((np.arange(1, count + 1) / count - at).max(), (at - np.arange(count) / count).max())
    assert distance < 2.2 / math.sqrt(count) + slack, distance


def uniform_between(low: float, high: float) -> Callable[[Values], Values]:
    """The distribution function of the uniform distribution; values outside it are an error."""

    def distribution(values: Values) -> Values:
        assert values.min() >= low - 1e-9 and values.max() <= high + 1e-9, (values.min(), values.max())
        return (values - low) / (high - low)

    return distribution


def assert_frequency(chosen: Values, probability: float) -> None:
    """A share of `chosen` is true that differs from the probability by no more than chance."""
    chosen = np.asarray(chosen)
    deviation = math.sqrt(probability * (1 - probability) / len(chosen))
    assert abs(chosen.mean() - probability) < 4.5 * deviation, chosen.mean()


def assert_uncorrelated(streams: Sequence[Values]) -> None:
    """No pair of these equally long lists of numbers is correlated."""
    matrix = np.corrcoef(np.stack([np.asarray(stream, dtype=np.float64) for stream in streams]))
    np.fill_diagonal(matrix, 0)
    assert np.abs(matrix).max() < 5.5 / math.sqrt(len(streams[0])), np.abs(matrix).max()
