"""Window plans and token order: a wrong index would still train, with an unexplained loss of accuracy."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neuscale.models.windows import (
    WindowPlan,
    inverse,
    relative_position_index,
    shift_mask,
    window_order,
    window_plan,
)

sides = st.integers(1, 24)
windows = st.integers(1, 9)


@st.composite
def shifted_plans(draw: st.DrawFn) -> tuple[WindowPlan, tuple[int, int]]:
    plan = window_plan(draw(sides), draw(sides), draw(windows))
    return plan, (draw(st.integers(0, plan.window_h - 1)), draw(st.integers(0, plan.window_w - 1)))


@settings(deadline=None)
@given(sides, sides, windows)
def test_whole_windows_cover_the_map_and_none_is_all_padding(height: int, width: int, window: int) -> None:
    plan = window_plan(height, width, window)
    for size, fitted, padded in (
        (height, plan.window_h, plan.padded_h),
        (width, plan.window_w, plan.padded_w),
    ):
        assert 1 <= fitted <= window
        assert padded % fitted == 0
        assert size <= padded < size + fitted
    assert plan.windows * plan.window_tokens == plan.padded_h * plan.padded_w
    assert plan.padded == (plan.padded_h * plan.padded_w > height * width)


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(2, 9))
def test_no_token_is_left_to_attend_to_itself_alone(size: int, window: int) -> None:
    assert window_plan(size, size, window).window_h > 1


def test_small_maps_get_a_smaller_window_and_large_ones_a_little_padding() -> None:
    """The recipes at 32, 64, 224 and 256 pixels rely on these; padding would triple the cost of the first."""

    def fitted(size: int) -> tuple[int, int]:
        plan = window_plan(size, size, 7)
        return plan.window_h, plan.padded_h

    assert {size: fitted(size) for size in (1, 2, 4, 8, 16)} == {
        1: (1, 1),
        2: (2, 2),
        4: (4, 4),
        8: (4, 8),
        16: (4, 16),
    }
    assert {size: fitted(size) for size in (56, 28, 14, 7)} == {
        56: (7, 56),
        28: (7, 28),
        14: (7, 14),
        7: (7, 7),
    }
    assert fitted(64) == (7, 70)
    assert fitted(32) == (7, 35)


@pytest.mark.parametrize(
    ("size", "window", "fitted", "padded"),
    [
        (19, 7, 7, 21),  # (21/19)² = 1.22 times the map is accepted
        (25, 7, 5, 25),  # (28/25)² = 1.254 times the map is too much; 5 divides it
        (26, 7, 7, 28),
        (9, 7, 7, 14),  # its divisor 3 is less than half the window: padded instead
        (10, 7, 5, 10),
        (9, 6, 3, 9),  # exactly half the window
        (6, 4, 3, 6),
        (12, 8, 6, 12),
        (11, 7, 7, 14),  # a prime has no divisor but 1
        (3, 2, 2, 4),  # in a window of one, a token would attend to itself only
        (7, 7, 7, 7),
        (5, 7, 5, 5),
    ],
)
def test_a_side_is_padded_a_little_or_cut_by_a_divisor(
    size: int, window: int, fitted: int, padded: int
) -> None:
    assert window_plan(size, size, window) == WindowPlan(size, size, fitted, fitted, padded, padded)


def test_each_side_has_its_own_window() -> None:
    plan = window_plan(8, 21, 7)
    assert plan == WindowPlan(8, 21, 4, 7, 8, 21)
    assert (plan.windows, plan.window_tokens, plan.padded) == (6, 28, False)
    assert window_plan(19, 7, 7).padded and window_plan(7, 19, 7).padded


def test_a_shifted_map_of_4_by_6_by_hand() -> None:
    """Windows of 2×3, shifted by (1, 1): the map is rolled up and to the left by one.

    0  1  2  3  4  5         7  8  9 | 10 11  6
    6  7  8  9 10 11        13 14 15 | 16 17 12
    12 13 14 15 16 17   →   ---------+---------
    18 19 20 21 22 23       19 20 21 | 22 23 18
                             1  2  3 |  4  5  0
    """
    plan = WindowPlan(4, 6, 2, 3, 4, 6)
    assert window_order(plan, (1, 1)).view(4, 6).tolist() == [
        [7, 8, 9, 13, 14, 15],
        [10, 11, 6, 16, 17, 12],
        [19, 20, 21, 1, 2, 3],
        [22, 23, 18, 4, 5, 0],
    ]
    mask = shift_mask(plan, (1, 1))
    assert mask is not None and mask.dtype == torch.float32
    assert not mask[0].any()  # no token was wrapped around
    side = [0, 0, 1, 0, 0, 1]  # 6 and 12 were wrapped around from the left
    below = [0, 0, 0, 1, 1, 1]  # 1, 2 and 3 were wrapped around from the top
    corner = [0, 0, 1, 2, 2, 3]  # 18, then 4 and 5, then 0 come from other sides
    for window, part in enumerate((side, below, corner), 1):
        expected = [[0.0 if a == b else -100.0 for b in part] for a in part]
        assert mask[window].tolist() == expected


def test_the_bias_rows_of_a_window_of_2_by_2_by_hand() -> None:
    """Table rows go by row offset, from -1 to 1, then column offset: row 4, the middle, is offset (0, 0)."""
    assert relative_position_index(2, 2, 2).tolist() == [
        [4, 3, 1, 0],
        [5, 4, 2, 1],
        [7, 6, 4, 3],
        [8, 7, 5, 4],
    ]
    # in a table of 5×5: a window of one row uses the middle row, one of one column the middle column
    assert relative_position_index(1, 2, 3).tolist() == [[12, 11], [13, 12]]
    assert relative_position_index(2, 1, 3).tolist() == [[12, 7], [17, 12]]


@settings(deadline=None)
@given(shifted_plans())
def test_the_window_order_has_every_token_once(shifted: tuple[WindowPlan, tuple[int, int]]) -> None:
    plan, shift = shifted
    order = window_order(plan, shift)
    assert order.sort().values.tolist() == list(range(plan.padded_h * plan.padded_w))


@settings(deadline=None)
@given(shifted_plans())
def test_the_window_order_cuts_the_rolled_map_window_by_window(
    shifted: tuple[WindowPlan, tuple[int, int]],
) -> None:
    """Expected from pixel coordinates: the position from which the roll took each token of each window."""
    plan, (shift_h, shift_w) = shifted
    expected = [
        (top + row + shift_h) % plan.padded_h * plan.padded_w + (left + column + shift_w) % plan.padded_w
        for top in range(0, plan.padded_h, plan.window_h)
        for left in range(0, plan.padded_w, plan.window_w)
        for row in range(plan.window_h)
        for column in range(plan.window_w)
    ]
    assert window_order(plan, (shift_h, shift_w)).tolist() == expected


@settings(deadline=None)
@given(shifted_plans())
def test_the_mask_keeps_apart_what_was_not_together_before_the_roll(
    shifted: tuple[WindowPlan, tuple[int, int]],
) -> None:
    """Two tokens of a window attend to each other unless the map's seam lies between them."""
    plan, shift = shifted
    mask = shift_mask(plan, shift)
    if shift == (0, 0):
        assert mask is None
        return
    assert mask is not None
    order = window_order(plan, shift).view(plan.windows, plan.window_tokens)
    row, column = order // plan.padded_w, order % plan.padded_w
    over_h, over_w = row < shift[0], column < shift[1]  # wrapped around from the top, from the left
    together = (over_h[:, :, None] == over_h[:, None, :]) & (over_w[:, :, None] == over_w[:, None, :])
    assert torch.equal(mask == 0, together)
    assert torch.equal(mask, mask.mT)
    assert mask.unique().tolist() in ([0.0], [-100.0, 0.0])


@settings(deadline=None)
@given(windows, windows, windows)
def test_the_bias_row_depends_on_the_offset_only_and_is_in_the_table(
    window_h: int, window_w: int, table: int
) -> None:
    assume(max(window_h, window_w) <= table)
    index = relative_position_index(window_h, window_w, table)
    assert index.shape == (window_h * window_w, window_h * window_w)
    rows: dict[tuple[int, int], int] = {}
    for query in range(window_h * window_w):
        for key in range(window_h * window_w):
            offset = (query // window_w - key // window_w, query % window_w - key % window_w)
            assert rows.setdefault(offset, int(index[query, key])) == index[query, key]
    assert len(set(rows.values())) == len(rows) == (2 * window_h - 1) * (2 * window_w - 1)
    assert 0 <= int(index.min()) <= int(index.max()) < (2 * table - 1) ** 2


@settings(deadline=None)
@given(windows, windows)
def test_a_smaller_window_reads_the_same_bias_for_the_same_offset(small: int, table: int) -> None:
    """Weights trained at 224 pixels therefore have the same meaning at 32."""
    assume(small <= table)
    inside = torch.arange(table * table).view(table, table)[:small, :small].flatten()
    nominal = relative_position_index(table, table, table)
    assert torch.equal(relative_position_index(small, small, table), nominal[inside][:, inside])


@settings(deadline=None)
@given(st.permutations(list(range(12))))
def test_the_inverse_undoes_an_order_from_both_sides(numbers: list[int]) -> None:
    order = torch.tensor(numbers)
    assert order[inverse(order)].tolist() == inverse(order)[order].tolist() == list(range(12))
