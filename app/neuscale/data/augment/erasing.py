"""Random erasing (Zhong et al. 2020) on whole batches: a rectangle of an image gets the mean colour."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuscale.data.sampling import Positions, integer_draws, uniform_draws

# The paper's ranges: share of the image's area, and height over width.
AREA = (0.02, 0.33)


RATIO = (0.3, 3.3)


@dataclass(frozen=True)
class Erasing:
    """`box`: [B, 4], int64: top, bottom, left, right; empty for images that are not erased."""

    box: Tensor

    def at(self, positions: slice | Tensor) -> "Erasing":
        return Erasing(self.box[positions])


def draw_erasing(
    probability: float,
    seed: int,
    epoch: int,
    positions: Positions,
    size: tuple[int, int],
    device: torch.device,
) -> Erasing:
    """Draw the rectangles at `positions`; `size`: height and width, to which they are limited."""
    height, width = size
    area = AREA[0] + (AREA[1] - AREA[0]) * uniform_draws(seed, epoch, "erase area", positions)
    low, high = np.log(RATIO)
    ratio = np.exp(low + (high - low) * uniform_draws(seed, epoch, "erase ratio", positions))
    rows = np.clip(np.round(np.sqrt(area * height * width * ratio)), 1, height).astype(np.int64)
    columns = np.clip(np.round(np.sqrt(area * height * width / ratio)), 1, width).astype(np.int64)
    top = integer_draws(seed, epoch, "erase top", positions, 1 << 30) % (height - rows + 1)
    left = integer_draws(seed, epoch, "erase left", positions, 1 << 30) % (width - columns + 1)
    box = np.stack([top, top + rows, left, left + columns], axis=1)
    box[uniform_draws(seed, epoch, "erase", positions) >= probability] = 0
    return Erasing(torch.from_numpy(box).to(device))


def apply_erasing(images: Tensor, erasing: Erasing) -> Tensor:
    """Set each box of normalised images, float [B, C, H, W], to 0, the mean."""
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    top, bottom, left, right = (edge[:, None, None, None] for edge in erasing.box.unbind(1))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return images.masked_fill(inside, 0.0)
