"""Where tokens stand: a wrong index here trains, and only costs accuracy that nobody can explain."""

import torch
from hypothesis import assume, given
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


@given(st.integers(2, 60), st.integers(2, 9))
def test_no_token_is_left_to_attend_to_itself_alone(size: int, window: int) -> None:
    assert window_plan(size, size, window).window_h > 1


def test_small_maps_get_a_smaller_window_and_large_ones_a_little_padding() -> None:
    """What the 32-, 64-, 224- and 256-pixel recipes rest on; the first would cost three times as much."""

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


@given(shifted_plans())
def test_the_window_order_has_every_token_once(shifted: tuple[WindowPlan, tuple[int, int]]) -> None:
    plan, shift = shifted
    order = window_order(plan, shift)
    assert order.sort().values.tolist() == list(range(plan.padded_h * plan.padded_w))


@given(shifted_plans())
def test_the_window_order_cuts_the_rolled_map_window_by_window(
    shifted: tuple[WindowPlan, tuple[int, int]],
) -> None:
    """Against pixel coordinates: token t of window w, and where the roll took it from."""
    plan, (shift_h, shift_w) = shifted
    expected = [
        (top + row + shift_h) % plan.padded_h * plan.padded_w + (left + column + shift_w) % plan.padded_w
        for top in range(0, plan.padded_h, plan.window_h)
        for left in range(0, plan.padded_w, plan.window_w)
        for row in range(plan.window_h)
        for column in range(plan.window_w)
    ]
    assert window_order(plan, (shift_h, shift_w)).tolist() == expected


@given(shifted_plans())
def test_the_mask_keeps_apart_what_was_not_together_before_the_roll(
    shifted: tuple[WindowPlan, tuple[int, int]],
) -> None:
    """Two tokens of a window see each other where neither side of the map's seam lies between them."""
    plan, shift = shifted
    mask = shift_mask(plan, shift)
    if shift == (0, 0):
        assert mask is None
        return
    assert mask is not None
    order = window_order(plan, shift).view(plan.windows, plan.window_tokens)
    row, column = order // plan.padded_w, order % plan.padded_w
    over_h, over_w = row < shift[0], column < shift[1]  # came round from the top, from the left
    together = (over_h[:, :, None] == over_h[:, None, :]) & (over_w[:, :, None] == over_w[:, None, :])
    assert torch.equal(mask == 0, together)
    assert torch.equal(mask, mask.mT)
    assert mask.unique().tolist() in ([0.0], [-100.0, 0.0])


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


@given(windows, windows)
def test_a_smaller_window_reads_the_same_bias_for_the_same_offset(small: int, table: int) -> None:
    """So that weights trained at 224 pixels mean the same at 32."""
    assume(small <= table)
    inside = torch.arange(table * table).view(table, table)[:small, :small].flatten()
    nominal = relative_position_index(table, table, table)
    assert torch.equal(relative_position_index(small, small, table), nominal[inside][:, inside])


@given(st.permutations(list(range(12))))
def test_the_inverse_undoes_an_order_from_both_sides(numbers: list[int]) -> None:
    order = torch.tensor(numbers)
    assert order[inverse(order)].tolist() == inverse(order)[order].tolist() == list(range(12))
