"""Statistical checks of random draws: chi-square and Kolmogorov-Smirnov by hand, with generous bounds.

All seeds are fixed, so each test always gives the same result. The chi-square bound is seven standard
deviations of the statistic above its mean; sound draws stay far below it.
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
    """Assert that each of the integers 0 … count - 1 occurs equally often in `cells`."""
    cells = np.asarray(cells)
    assert cells.min() >= 0 and cells.max() < count
    expected = len(cells) / count
    assert expected >= 5, "too few draws for a test"
    found = np.bincount(cells, minlength=count)
    statistic = float(((found - expected) ** 2 / expected).sum())
    assert _within_chance(statistic, count - 1), found


def assert_independent(one: Values, other: Values) -> None:
    """Assert that two lists of integers are independent (chi-square of their contingency table)."""
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1))
    np.add.at(table, (one, other), 1)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert expected.min() >= 5, "too few draws for a test"
    assert min(table.shape) > 1, "one of them is constant"
    statistic = float(((table - expected) ** 2 / expected).sum())
    assert _within_chance(statistic, (table.shape[0] - 1) * (table.shape[1] - 1)), statistic


def assert_all_independent(values: dict[str, Values], bins: int = 8) -> None:
    """Assert that all pairs are independent, after cutting each list into bins of equal counts."""
    cells = {name: quantile_cells(drawn, bins) for name, drawn in values.items()}
    for (one, a), (other, b) in combinations(cells.items(), 2):
        try:
            assert_independent(a, b)
        except AssertionError as error:
            raise AssertionError(f"{one} and {other}: {error}") from None


def quantile_cells(values: Values, bins: int = 8) -> NDArray[np.int64]:
    """Return the bin of each value, for bins of about equal counts; equal values share a bin."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.digitize(values, edges).astype(np.int64)


def assert_distributed(values: Values, distribution: Callable[[Values], Values], slack: float = 0.0) -> None:
    """Assert a small Kolmogorov-Smirnov distance to a CDF; `slack` allows for rounded values."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    at = distribution(ordered)
    distance = max((np.arange(1, count + 1) / count - at).max(), (at - np.arange(count) / count).max())
    assert distance < 2.2 / math.sqrt(count) + slack, distance


def uniform_between(low: float, high: float) -> Callable[[Values], Values]:
    """Return the CDF of the uniform distribution; values outside its range are an error."""

    def distribution(values: Values) -> Values:
        assert values.min() >= low - 1e-9 and values.max() <= high + 1e-9, (values.min(), values.max())
        return (values - low) / (high - low)

    return distribution


def assert_frequency(chosen: Values, probability: float) -> None:
    """Assert that the share of true values in `chosen` differs from `probability` only by chance."""
    chosen = np.asarray(chosen)
    deviation = math.sqrt(probability * (1 - probability) / len(chosen))
    assert abs(chosen.mean() - probability) < 4.5 * deviation, chosen.mean()


def assert_uncorrelated(streams: Sequence[Values]) -> None:
    """Assert that no pair of these lists of numbers (of equal length) is correlated."""
    matrix = np.corrcoef(np.stack([np.asarray(stream, dtype=np.float64) for stream in streams]))
    np.fill_diagonal(matrix, 0)
    assert np.abs(matrix).max() < 5.5 / math.sqrt(len(streams[0])), np.abs(matrix).max()
