"""Convert whole batches of bytes to model input: gather, pad, crop, flip, normalise, resize.

Each image has its own parameters, drawn as a function of (seed, epoch, position).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neuscale.config.schema import AugmentConfig
from neuscale.data.sampling import Positions, integer_draws, uniform_draws


@dataclass(frozen=True)
class Rows:
    """Selected images of a store, in order: `images` uint8 [N, C, H, W], `index` int64 [B] into them.

    Without an index: all images of the store in their own order.
    """

    images: Tensor
    index: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> "Rows":
        if self.index is not None:
            return Rows(self.images, self.index[rows])
        return Rows(self.images[rows]) if isinstance(rows, slice) else Rows(self.images, rows)

    def gathered(self) -> Tensor:
        """The selected images, uint8 [B, C, H, W]; must not be written to."""
        return self.images if self.index is None else self.images.index_select(0, self.index)


@dataclass(frozen=True)
class CropFlip:
    """Crop position and mirroring of images.

    Tensors of shape [B]: `top` and `left` int64 in 0 … 2 * padding, `flip` bool.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    padding: int

    def at(self, positions: slice | Tensor) -> "CropFlip":
        return CropFlip(self.top[positions], self.left[positions], self.flip[positions], self.padding)


def draw_crop_flip(
    config: AugmentConfig, seed: int, epoch: int, positions: Positions, device: torch.device
) -> CropFlip:
    """Draw the crops and flips of an epoch at `positions`."""
    offsets = 2 * config.crop_padding + 1
    flip = uniform_draws(seed, epoch, "flip", positions) < config.horizontal_flip
    return CropFlip(
        top=torch.from_numpy(integer_draws(seed, epoch, "crop top", positions, offsets)).to(device),
        left=torch.from_numpy(integer_draws(seed, epoch, "crop left", positions, offsets)).to(device),
        flip=torch.from_numpy(flip).to(device),
        padding=config.crop_padding,
    )


def crop_flip(rows: Rows, crops: CropFlip) -> Tensor:
    """Zero-pad, crop to the same size and mirror each image: rows → uint8 [B, C, H, W]."""
    images = rows.gathered()
    B, C, H, W = images.shape
    columns = torch.arange(W, device=images.device).expand(B, W)
    columns = torch.where(crops.flip[:, None], W - 1 - columns, columns)
    if crops.padding:
        images = F.pad(images, (crops.padding,) * 4)
        columns = columns + crops.left[:, None]
        lines = torch.arange(H, device=images.device) + crops.top[:, None]
        width = W + 2 * crops.padding
        flat = (lines[:, :, None] * width + columns[:, None, :]).view(B, 1, H * W)
        return images.flatten(2).gather(2, flat.expand(B, C, H * W)).view(B, C, H, W)
    return images.gather(3, columns[:, None, None, :].expand(B, C, H, W))


class Normalize:
    """Normalisation of bytes to model input, (x / 255 - mean) / std; `mean` and `std` float32 [C].

    `ops`: the package of native ops, which gives bitwise equal results in one pass over memory, or None.
    """

    def __init__(self, mean: Tensor, std: Tensor, ops: Any = None) -> None:
        self.mean, self.std = mean, std
        self._ops = ops

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] → float32, the same shape."""
        return normalize(images, self.mean, self.std)

    def cropped(self, rows: Rows, crops: CropFlip) -> Tensor:
        """Rows cropped, mirrored and normalised: float32 [B, C, H, W]."""
        if self._ops is None:
            return self(crop_flip(rows, crops))
        index = rows.index
        if index is None:
            index = torch.arange(len(rows.images), device=rows.images.device)
        fused: Tensor = self._ops.crop_flip_normalize(
            rows.images, index, crops.top, crops.left, crops.flip, self.mean, self.std, crops.padding
        )
        return fused


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [B, C, H, W] → float32, (x / 255 - mean) / std per channel; mean and std have shape [C]."""
    scale = 1.0 / (255.0 * std)
    shift = -mean / std
    return torch.addcmul(shift[:, None, None], images.float(), scale[:, None, None])


def resize(images: Tensor, size: int, interpolation: str = "bilinear", crop: float = 1.0) -> Tensor:
    """Resize float [B, C, H, W] → [B, C, size, size], with antialiasing; unchanged if the size fits.

    `interpolation`: "bilinear" or "bicubic". `crop`: images are resized to a larger side, of which the
    central share `crop` is kept (see `side_before_crop`).
    """
    if images.shape[-2:] == (size, size):
        return images
    side = side_before_crop(size, crop)
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode=interpolation, antialias=True)
    return center_crop(images, size)


def center_crop(images: Tensor, size: int) -> Tensor:
    """Central part of [B, C, S, S]: [B, C, size, size]."""
    first = round((images.shape[-1] - size) / 2)  # as in torchvision's CenterCrop
    return images[..., first : first + size, first : first + size]


def side_before_crop(size: int, crop: float) -> int:
    """Side to resize images to before the centre crop of share `crop`, rounded as in timm's evaluation."""
    return int(size / crop + 1e-6)


_ASPECT = math.log(4 / 3)


def draw_windows(smallest_area: float, seed: int, epoch: int, positions: Positions) -> NDArray[np.float64]:
    """Draw the crop windows of an epoch at `positions`, [B, 4]: share of the area, width/height, row, column.

    The area is uniform in `smallest_area` … 1, the ratio log-uniform in 3/4 … 4/3; row and
    column are uniform in 0 … 1, relative to the room that the window leaves.
    """
    area, ratio, row, column = (
        uniform_draws(seed, epoch, f"window {name}", positions) for name in ("area", "ratio", "row", "column")
    )
    area = smallest_area + (1 - smallest_area) * area
    return np.stack([area, np.exp(_ASPECT * (2 * ratio - 1)), row, column], axis=1)


def window_pixels(window: NDArray[np.float64], height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of a window in an image of this size, within the image."""
    area, ratio, row, column = window.tolist()
    pixels = area * height * width
    h = min(height, max(1, round(math.sqrt(pixels / ratio))))
    w = min(width, max(1, round(math.sqrt(pixels * ratio))))
    return int(row * (height - h + 1)), int(column * (width - w + 1)), h, w
