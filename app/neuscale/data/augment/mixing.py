"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), each image with its own partner and weight.

The partner of an image is in the same global batch, possibly on another rank, so the
pairs do not depend on the number of ranks.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuscale.data.sampling import Positions, first_and_count, integer_draws, uniform_draws


@dataclass(frozen=True)
class Mix:
    """Mixing of images; tensors of shape [B].

    `partner`: position of the other image, int64; `weight`: weight of the image itself,
    float32 in 0 … 1 (1: unchanged); `box`: [B, 4], int64, the rows and columns (top,
    bottom, left, right) that CutMix takes from the partner; empty for Mixup.
    """

    partner: Tensor
    weight: Tensor
    box: Tensor

    def at(self, positions: slice | Tensor) -> "Mix":
        return Mix(self.partner[positions], self.weight[positions], self.box[positions])


def draw_mix(
    mixup_alpha: float,
    cutmix_alpha: float,
    seed: int,
    epoch: int,
    positions: Positions,
    global_batch_size: int,
    size: tuple[int, int],
    device: torch.device,
) -> Mix:
    """Draw the mixes at `positions`; `size`: height, width. With both alphas each image gets one of them."""
    uniform = uniform_draws(seed, epoch, "mix share", positions)
    if mixup_alpha and cutmix_alpha:
        cut = uniform_draws(seed, epoch, "mix kind", positions) < 0.5
    else:
        cut = np.full(len(uniform), cutmix_alpha > 0)
    weight = np.where(cut, beta_quantile(cutmix_alpha, uniform), beta_quantile(mixup_alpha, uniform))
    box = _boxes(weight, seed, epoch, positions, size)
    box[~cut] = 0
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    weight = np.where(cut, 1.0 - area / (size[0] * size[1]), weight)
    return Mix(
        torch.from_numpy(mix_partners(seed, epoch, positions, global_batch_size)).to(device),
        torch.from_numpy(weight.astype(np.float32)).to(device),
        torch.from_numpy(box).to(device),
    )


def mix_partners(seed: int, epoch: int, positions: Positions, global_batch_size: int) -> NDArray[np.int64]:
    """Position of the partner of the image at each of `positions`, in the same global batch: int64 [B]."""
    first, count = first_and_count(positions)
    batch, index = np.divmod(np.arange(first, first + count), global_batch_size)
    if count == 0:
        return batch
    # In each batch all partners have the same distance, and no image is its own partner.
    batches = slice(int(batch[0]), int(batch[-1]) + 1)
    distance = 1 + integer_draws(seed, epoch, "mix distance", batches, max(1, global_batch_size - 1))
    return batch * global_batch_size + (index + distance[batch - batch[0]]) % global_batch_size


def mix_images(images: Tensor, partners: Tensor, mix: Mix) -> Tensor:
    """Mix images with their partners, both float [B, C, H, W]; `mix` is that of these positions."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    top, bottom, left, right = (edge[:, None, None, None] for edge in mix.box.unbind(1))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    weight = mix.weight[:, None, None, None]
    blended = torch.lerp(partners, images, weight)
    is_cut = (mix.box[:, 1] > mix.box[:, 0])[:, None, None, None]
    # A CutMix with an empty box has weight 1, for which the blend changes nothing.
    return torch.where(is_cut, torch.where(inside, partners, images), blended)


def beta_quantile(alpha: float, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantile function of Beta(alpha, alpha): transforms uniform numbers to that distribution.

    For alpha 0 all values are 1, which means no mixing.
    """
    if alpha <= 0:
        return np.ones_like(uniform)
    points, distribution = _beta_distribution(alpha)
    return np.interp(uniform, distribution, points)


@cache
def _beta_distribution(alpha: float, points: int = 4097) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # In s = x^alpha the density is (1 - x)^(alpha - 1), finite for x up to 1/2, unlike the density
    # in x; it is evaluated at the middle of each interval. The other half is the mirror image.
    edges = np.linspace(0.0, 0.5**alpha, points)
    middles = (edges[1:] + edges[:-1]) / 2
    density = (1.0 - middles ** (1 / alpha)) ** (alpha - 1)
    half = np.concatenate([[0.0], np.cumsum(density)])
    half *= 0.5 / half[-1]
    x = edges ** (1 / alpha)
    return np.concatenate([x, 1.0 - x[-2::-1]]), np.concatenate([half, 1.0 - half[-2::-1]])


def _boxes(
    weight: NDArray[np.float64], seed: int, epoch: int, positions: Positions, size: tuple[int, int]
) -> NDArray[np.int64]:
    """CutMix boxes [B, 4]: share 1 - weight of the area, at a uniform centre, clipped at the border."""
    side = np.sqrt(1.0 - weight)
    edges = []
    for axis, name in enumerate(("row", "column")):
        centre = integer_draws(seed, epoch, f"mix {name}", positions, size[axis])
        half = (side * size[axis] / 2).astype(np.int64)
        edges += [np.clip(centre - half, 0, size[axis]), np.clip(centre + half, 0, size[axis])]
    return np.stack(edges, axis=1)
