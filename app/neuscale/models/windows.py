"""Token positions in shifted-window attention: index arithmetic, computed once per model.

A Swin block works on windows of a map of tokens. Everything in it except attention is
per token, so tokens need not return to raster order between two blocks: each block
permutes them directly from the previous block's order into its own. These functions
compute those orders, the attention masks and the relative positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowPlan:
    """Partition of a map of `height` × `width` tokens into windows of `window_h` × `window_w`.

    `padded_h`, `padded_w`: size of the map after padding to whole windows.
    """

    height: int
    width: int
    window_h: int
    window_w: int
    padded_h: int
    padded_w: int

    @property
    def padded(self) -> bool:
        return (self.padded_h, self.padded_w) != (self.height, self.width)

    @property
    def windows(self) -> int:
        return (self.padded_h // self.window_h) * (self.padded_w // self.window_w)

    @property
    def window_tokens(self) -> int:
        return self.window_h * self.window_w


# The nominal window is kept if padding to whole windows enlarges the map by no more
# than this factor, as for the maps of a 256-pixel image, 64 → 70 and 32 → 35.
PADDING_ALLOWED = 1.25


def _fit(size: int, window: int) -> tuple[int, int]:
    """(window size, padded size) along one side of `size` tokens."""
    if size <= window:
        return size, size
    padded = -(-size // window) * window
    if padded <= size * PADDING_ALLOWED**0.5:
        return window, padded
    divisor = max(d for d in range(1, window + 1) if size % d == 0)
    # A window of one token would attend only to itself.
    return (divisor, size) if divisor > 1 and 2 * divisor >= window else (window, padded)


def window_plan(height: int, width: int, window: int) -> WindowPlan:
    """Windows of a map: of nominal size `window` if that fits with little padding, else smaller ones.

    An 8×8 map with a window of 7 is divided into windows of 4, not padded to 14×14.
    """
    window_h, padded_h = _fit(height, window)
    window_w, padded_w = _fit(width, window)
    return WindowPlan(height, width, window_h, window_w, padded_h, padded_w)


def window_order(plan: WindowPlan, shift: tuple[int, int]) -> Tensor:
    """Raster positions in the padded map, window by window, after rolling the map by `-shift`.

    Shape [padded_h * padded_w], int64.
    """
    raster = torch.arange(plan.padded_h * plan.padded_w).view(plan.padded_h, plan.padded_w)
    rolled = raster.roll((-shift[0], -shift[1]), dims=(0, 1))
    grid = rolled.view(
        plan.padded_h // plan.window_h, plan.window_h, plan.padded_w // plan.window_w, plan.window_w
    )
    return grid.permute(0, 2, 1, 3).reshape(-1)


def shift_mask(plan: WindowPlan, shift: tuple[int, int]) -> Tensor | None:
    """Additive attention mask between tokens that are neighbours only because of the roll.

    Shape [windows, window_tokens, window_tokens] of 0 and -100 (the value of the Swin
    paper's code, Liu et al. 2021), or None without a shift.
    """
    if shift == (0, 0):
        return None

    def region(size: int, window: int, by: int) -> Tensor:
        position = torch.arange(size)
        if by == 0:
            return torch.zeros_like(position)
        return (position >= size - window).long() + (position >= size - by).long()

    rows = region(plan.padded_h, plan.window_h, shift[0])
    columns = region(plan.padded_w, plan.window_w, shift[1])
    regions = (rows[:, None] * 3 + columns[None, :]).view(-1)
    # The regions are those of the rolled map, so no further roll is needed.
    regions = regions[window_order(plan, (0, 0))].view(plan.windows, plan.window_tokens)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, -100.0)


def relative_position_index(window_h: int, window_w: int, table_window: int) -> Tensor:
    """Row in the bias table of a square window of `table_window` tokens, for each pair of tokens.

    Shape [window_h * window_w, window_h * window_w], int64. A window smaller than the
    table's uses the middle of the table: equal offsets have equal rows.
    """
    rows = torch.arange(window_h).repeat_interleave(window_w)
    columns = torch.arange(window_w).repeat(window_h)
    row_offset = rows[:, None] - rows[None, :] + table_window - 1
    column_offset = columns[:, None] - columns[None, :] + table_window - 1
    return row_offset * (2 * table_window - 1) + column_offset


def inverse(order: Tensor) -> Tensor:
    """Inverse permutation: `order[inverse(order)]` is 0, 1, 2, …"""
    result = torch.empty_like(order)
    result[order] = torch.arange(len(order), device=order.device)
    return result
