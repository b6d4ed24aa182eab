"""Crops, flips, windows, erased boxes and orders are distributed, also jointly, as in their papers.

A check of ranges alone would accept crops that are all on the diagonal, or boxes that are always as high
as they are wide.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment import erasing as erase
from neuscale.data.augment.crops import draw_windows, window_pixels
from neuscale.data.augment.erasing import Erasing
from neuscale.data.augment.pipeline import Augmentation, draw_augmentation
from neuscale.data.sampling import permutation

from .chance import (
    assert_all_independent,
    assert_distributed,
    assert_frequency,
    assert_independent,
    assert_uniform,
    uniform_between,
)

CPU = torch.device("cpu")
COUNT = 20_000


def drawn(size: tuple[int, int] = (12, 9), seed: int = 0, epoch: int = 0, **options: object) -> Augmentation:
    config = AugmentConfig(**options)  # type: ignore[arg-type]
    return draw_augmentation(config, seed, epoch, COUNT, 100, size, CPU)


def test_crops_take_every_pair_of_offsets_equally_often_whether_mirrored_or_not() -> None:
    crops = drawn(crop_padding=2, horizontal_flip=0.3).crops
    assert crops.padding == 2
    cells = (crops.top * 5 + crops.left).numpy()
    assert_uniform(cells, 25)
    assert_frequency(crops.flip.numpy(), 0.3)
    assert_independent(cells, crops.flip.numpy().astype(int))
    assert_independent(cells[:-1], cells[1:])


def test_windows_are_uniform_in_area_and_position_and_log_uniform_in_ratio() -> None:
    area, ratio, row, column = draw_windows(0.2, 0, 0, COUNT).T
    assert_distributed(area, uniform_between(0.2, 1.0))
    assert_distributed(np.log(ratio), uniform_between(math.log(3 / 4), math.log(4 / 3)))
    assert_distributed(row, uniform_between(0, 1))
    assert_distributed(column, uniform_between(0, 1))
    assert_all_independent({"area": area, "ratio": ratio, "row": row, "column": column})


def test_a_window_in_pixels_has_the_area_and_the_ratio_of_width_to_height() -> None:
    """Windows in 900 rows × 1200 columns; positions only of windows that leave room for a hundred or more."""
    found = []
    for window in draw_windows(0.08, 0, 0, 3000):
        top, left, height, width = window_pixels(window, 900, 1200)
        if height < 900 and width < 1200:
            assert height * width / (900 * 1200) == pytest.approx(window[0], rel=0.01)
            assert width / height == pytest.approx(window[1], rel=0.01)
        if height <= 800 and width <= 1100:
            found.append(((top + 0.5) / (900 - height + 1), (left + 0.5) / (1200 - width + 1)))
    assert len(found) > 1500
    rows, columns = np.array(found).T
    assert_distributed(rows, uniform_between(0, 1), slack=0.01)
    assert_distributed(columns, uniform_between(0, 1), slack=0.01)
    assert_all_independent({"row": rows, "column": columns})


@pytest.mark.parametrize(
    ("row", "column", "top", "left"),
    [(0.0, 0.0, 0, 0), (0.5, 0.25, 8, 5), (0.9999, 0.9999, 15, 20), (0.0, 0.9999, 0, 20)],
)
def test_a_window_by_hand(row: float, column: float, top: int, left: int) -> None:
    """A quarter of 30×40 pixels with a width-to-height ratio of 4/3 is 15×20, and has 16 × 21 positions."""
    window = np.array([0.25, 4 / 3, row, column])
    assert window_pixels(window, 30, 40) == (top, left, 15, 20)


def test_erased_boxes_have_the_areas_ratios_and_places_of_the_paper() -> None:
    """At 600×590 only one box in a hundred is too long for the image and is clipped."""
    height, width = 600, 590
    box = drawn((height, width), erasing=0.4).erasing
    assert box is not None
    chosen = box.box[:, 1] > box.box[:, 0]
    assert_frequency(chosen.numpy(), 0.4)
    top, bottom, left, right = box.box[chosen].double().unbind(1)
    rows, columns = bottom - top, right - left
    values = {
        "area": (rows * columns / (height * width)).numpy(),
        "ratio": (rows / columns).log().numpy(),
        "top": ((top + 0.5) / (height - rows + 1)).numpy(),
        "left": ((left + 0.5) / (width - columns + 1)).numpy(),
    }
    for name, (low, high) in {
        "area": (0.019, 0.332),
        "ratio": (math.log(0.295), math.log(3.35)),
        "top": (0, 1),
        "left": (0, 1),
    }.items():
        assert_distributed(values[name], uniform_between(low, high), slack=0.01)
    assert values["area"].mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.005)
    assert values["ratio"].mean() == pytest.approx((math.log(0.3) + math.log(3.3)) / 2, abs=0.05)
    assert_all_independent(values)
    # Erasing of an image is independent of its neighbour in the order and of its flip.
    assert_independent(chosen[1:].numpy().astype(int), chosen[:-1].numpy().astype(int))
    flips = drawn(horizontal_flip=0.5).crops.flip
    assert_independent(chosen.numpy().astype(int), flips.numpy().astype(int))


def erased_by_hand(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], area: float, ratio: float, place: int
) -> Erasing:
    """Return the box for a share of the area, a ratio of rows to columns and a position index."""
    log_range = math.log(3.3) - math.log(0.3)
    uniform = {
        "erase": 0.5,
        "erase area": (area - 0.02) / (0.33 - 0.02),
        "erase ratio": (math.log(ratio) - math.log(0.3)) / log_range,
    }

    def uniform_draws(_seed: int, _epoch: int, purpose: str, count: int) -> object:
        return np.full(count, uniform[purpose])

    def integer_draws(_seed: int, _epoch: int, purpose: str, count: int, below: int) -> object:
        assert purpose in ("erase top", "erase left") and place < below
        return np.full(count, place)

    monkeypatch.setattr(erase, "uniform_draws", uniform_draws)
    monkeypatch.setattr(erase, "integer_draws", integer_draws)
    return erase.draw_erasing(0.6, 0, 0, 1, size, CPU)


def test_an_erased_box_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 % of 40×30 pixels is 144 pixels: 18 rows × 8 columns at a ratio of 2.25."""
    assert erased_by_hand(monkeypatch, (40, 30), 0.12, 2.25, 0).box.tolist() == [[0, 18, 0, 8]]
    # 40 - 18 + 1 = 23 positions from the top, 30 - 8 + 1 = 23 from the left
    assert erased_by_hand(monkeypatch, (40, 30), 0.12, 2.25, 22).box.tolist() == [[22, 40, 22, 30]]
    assert erased_by_hand(monkeypatch, (40, 30), 0.12, 1 / 2.25, 0).box.tolist() == [[0, 8, 0, 18]]
    # 8 rows × 18 columns have 33 × 13 positions: index 20 is row 20 and column 20 % 13 = 7
    assert erased_by_hand(monkeypatch, (40, 30), 0.12, 1 / 2.25, 20).box.tolist() == [[20, 28, 7, 25]]
    # 30 % of 10×40 pixels is 120 pixels: 19 rows at a ratio of 3, clipped to 10, and 6 columns
    assert erased_by_hand(monkeypatch, (10, 40), 0.3, 3.0, 0).box.tolist() == [[0, 10, 0, 6]]
    # 2 % of 4×3 pixels is a quarter of a pixel: a box has at least one
    assert erased_by_hand(monkeypatch, (4, 3), 0.02, 0.3, 0).box.tolist() == [[0, 1, 0, 1]]
    assert erased_by_hand(monkeypatch, (4, 3), 0.02, 3.3, 0).box.tolist() == [[0, 1, 0, 1]]


def orders(count: int, seeds: range, epochs: range) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    return np.stack([permutation(seed, epoch, count) for seed in seeds for epoch in epochs])


@pytest.mark.parametrize(("seeds", "epochs"), [(range(1), range(6000)), (range(6000), range(1))])
def test_every_image_comes_equally_often_at_every_position(seeds: range, epochs: range) -> None:
    count = 7
    drawn = orders(count, seeds, epochs)
    for position in range(count):
        assert_uniform(drawn[:, position], count)
    # Ordered pairs of neighbours: 7 · 6.
    for one, other in pairwise(range(count)):
        later = drawn[:, other] - (drawn[:, other] > drawn[:, one])
        assert_uniform(drawn[:, one] * (count - 1) + later, count * (count - 1))
    # The number of images that keep their position has mean 1 and variance 1.
    kept = (drawn == np.arange(count)).sum(1)
    assert kept.mean() == pytest.approx(1, abs=4.5 / math.sqrt(len(drawn)))
    assert kept.var() == pytest.approx(1, abs=0.15)
    assert_independent(drawn[:-1, 0], drawn[1:, 0])
