"""Positions of tokens in shifted-window attention: plain index arithmetic, computed once per model.

A Swin block works on windows of a map of tokens. Everything in it but the attention
is per token, so the tokens need not go back to raster order between two blocks: each
block takes them from the order of the one before straight into its own. These
functions give those orders, the attention masks and the relative positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowPlan:
    """Partition of a map of `height` × `width` tokens into windows of `window_h` × `window_w`.

    `padded_h`, `padded_w`: the map's size once padded to whole windows.
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


# A map that grows by no more than this when padded to whole windows keeps the
# nominal window; 64 → 70 and 32 → 35, a 256-pixel image's maps, do.
PADDING_ALLOWED = 1.25


def _fit(size: int, window: int) -> tuple[int, int]:
    """(window, padded size) along one side of `size` tokens."""
    if size <= window:
        return size, size
    padded = -(-size // window) * window
    if padded <= size * PADDING_ALLOWED**0.5:
        return window, padded
    divisor = max(d for d in range(1, window + 1) if size % d == 0)
    # A window of one token would attend to nothing but itself.
    return (divisor, size) if divisor > 1 and 2 * divisor >= window else (window, padded)


def window_plan(height: int, width: int, window: int) -> WindowPlan:
    """The windows of a map: the nominal `window` where it fits or nearly so, a smaller one where it does not.

    An 8×8 map under a window of 7 is cut into windows of 4, not padded to 14×14.
    """
    window_h, padded_h = _fit(height, window)
    window_w, padded_w = _fit(width, window)
    return WindowPlan(height, width, window_h, window_w, padded_h, padded_w)


def window_order(plan: WindowPlan, shift: tuple[int, int]) -> Tensor:
    """Raster positions in the padded map, window after window, the map rolled by `-shift` first.

    Shape [padded_h * padded_w], int64.
    """
    raster = torch.arange(plan.padded_h * plan.padded_w).view(plan.padded_h, plan.padded_w)
    rolled = raster.roll((-shift[0], -shift[1]), dims=(0, 1))
    grid = rolled.view(
        plan.padded_h // plan.window_h, plan.window_h, plan.padded_w // plan.window_w, plan.window_w
    )
    return grid.permute(0, 2, 1, 3).reshape(-1)


def shift_mask(plan: WindowPlan, shift: tuple[int, int]) -> Tensor | None:
    """Additive attention mask that keeps apart what only the roll brought together.

    Shape [windows, window_tokens, window_tokens] of 0 and -100 (the value of the Swin
    paper's code, Liu et al. 2021), or None where nothing is shifted.
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
    # The regions are those of the rolled map, so they are cut without a further roll.
    regions = regions[window_order(plan, (0, 0))].view(plan.windows, plan.window_tokens)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, -100.0)


def relative_position_index(window_h: int, window_w: int, table_window: int) -> Tensor:
    """Rows of a bias table made for a `table_window` square window, per pair of tokens.

    Shape [window_h * window_w, window_h * window_w], int64. A window smaller than the
    table's uses the table's middle: the same offset has the same row.
    """
    rows = torch.arange(window_h).repeat_interleave(window_w)
    columns = torch.arange(window_w).repeat(window_h)
    row_offset = rows[:, None] - rows[None, :] + table_window - 1
    column_offset = columns[:, None] - columns[None, :] + table_window - 1
    return row_offset * (2 * table_window - 1) + column_offset


def inverse(order: Tensor) -> Tensor:
    """The order that undoes `order`: `order[inverse(order)]` counts 0, 1, 2, …"""
    result = torch.empty_like(order)
    result[order] = torch.arange(len(order), device=order.device)
    return result
