"""Random resized crops (Szegedy et al. 2015): a window of an image file, made square.

The draws are functions of (seed, epoch, position); the window in pixels follows from them
and from the size of the file, which only its reader knows.
"""

import math

import numpy as np
from numpy.typing import NDArray

from neuscale.data.randomness import uniform_draws

_ASPECT = math.log(4 / 3)


def draw_windows(smallest_area: float, seed: int, epoch: int, count: int) -> NDArray[np.float64]:
    """Windows of an epoch's positions, [count, 4]: part of the area, width over height, row, column.

    The area is uniform in `smallest_area` … 1, the ratio log-uniform in 3/4 … 4/3; row and
    column are uniform in 0 … 1, of the room that the window leaves.
    """
    area, ratio, row, column = (
        uniform_draws(seed, epoch, f"window {name}", count) for name in ("area", "ratio", "row", "column")
    )
    area = smallest_area + (1 - smallest_area) * area
    return np.stack([area, np.exp(_ASPECT * (2 * ratio - 1)), row, column], axis=1)


def window_pixels(window: NDArray[np.float64], height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a window in an image of this size; no side is longer than the image's."""
    area, ratio, row, column = window.tolist()
    pixels = area * height * width
    h = min(height, max(1, round(math.sqrt(pixels / ratio))))
    w = min(width, max(1, round(math.sqrt(pixels * ratio))))
    return int(row * (height - h + 1)), int(column * (width - w + 1)), h, w
