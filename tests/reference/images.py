"""Augmentation of one image at a time, written as in the papers: slow, but easy to check by reading."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide

from reference.draws import integers, uniform

Pixels = NDArray[np.uint8]

# In torchvision's order, geometric operations first.
OPERATIONS = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"]
OPERATIONS += ["Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Identity"]


@dataclass(frozen=True)
class Augment:
    """Augmentation settings; the fields mean the same as the configuration's fields of these names."""

    crop_padding: int = 0
    horizontal_flip: float = 0.0
    policy: str = "none"
    policy_layers: int = 2
    policy_magnitude: int = 9
    erasing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0


@dataclass(frozen=True)
class Epoch:
    """All random draws of an epoch of `count` positions; `size` is (height, width)."""

    augment: Augment
    seed: int
    epoch: int
    count: int
    batch: int
    size: tuple[int, int]

    def _uniform(self, purpose: str) -> NDArray[np.float64]:
        return uniform(self.seed, self.epoch, purpose, self.count)

    def _integers(self, purpose: str, below: int) -> list[int]:
        return integers(self.seed, self.epoch, purpose, self.count, below)

    @cached_property
    def _crops(self) -> list[tuple[int, int]]:
        room = 2 * self.augment.crop_padding + 1
        return list(zip(self._integers("crop top", room), self._integers("crop left", room), strict=True))

    @cached_property
    def _flips(self) -> list[bool]:
        return [bool(u < self.augment.horizontal_flip) for u in self._uniform("flip")]

    def crop_flip(self, image: Pixels, position: int) -> Pixels:
        """Crop a random window from the zero-padded image [C, H, W], and flip it horizontally if so drawn."""
        padding, (height, width) = self.augment.crop_padding, self.size
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        top, left = self._crops[position]
        window = padded[:, top : top + height, left : left + width]
        return window[:, :, ::-1] if self._flips[position] else window

    @cached_property
    def _layers(self) -> list[tuple[list[int], list[int], list[bool]]]:
        """Operation, strength and sign of each position, for each layer of the policy."""
        trivial = self.augment.policy == "trivialaugment"
        count = 0 if self.augment.policy == "none" else 1 if trivial else self.augment.policy_layers
        return [
            (
                self._integers(f"policy operation {layer}", len(OPERATIONS)),
                self._integers(f"policy strength {layer}", 31)
                if trivial
                else [self.augment.policy_magnitude] * self.count,
                [bool(u < 0.5) for u in self._uniform(f"policy sign {layer}")],
            )
            for layer in range(count)
        ]

    def policy(self, image: Pixels, position: int) -> Pixels:
        """Apply the operations drawn for a position, each as torchvision computes it."""
        peer = TrivialAugmentWide() if self.augment.policy == "trivialaugment" else RandAugment()
        result = torch.from_numpy(np.ascontiguousarray(image))
        for operations, strengths, negative in self._layers:
            name = OPERATIONS[operations[position]]
            table, signed = peer._AUGMENTATION_SPACE[name]
            magnitudes = table(31, *self.size)
            magnitude = float(magnitudes[strengths[position]]) if magnitudes is not None else 0.0
            if signed and negative[position]:
                magnitude = -magnitude
            result = peer._apply_image_or_video_transform(
                result, name, magnitude, interpolation=InterpolationMode.NEAREST, fill=peer._fill
            )
        return result.numpy()

    def erase(self, image: Tensor, position: int) -> Tensor:
        """Zero a random rectangle of 2 to 33 % of the area, height over width 0.3 to 3.3 (Zhong et al.)."""
        draw = {
            name: self._uniform(f"erase{name}")[position] for name in ("", " area", " ratio", " top", " left")
        }
        if draw[""] >= self.augment.erasing:
            return image
        height, width = self.size
        area = (0.02 + (0.33 - 0.02) * draw[" area"]) * height * width
        ratio = math.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * draw[" ratio"])
        rows = min(height, max(1, round(math.sqrt(area * ratio))))
        columns = min(width, max(1, round(math.sqrt(area / ratio))))
        top = int(draw[" top"] * 2**30) % (height - rows + 1)
        left = int(draw[" left"] * 2**30) % (width - columns + 1)
        image = image.clone()
        image[:, top : top + rows, left : left + columns] = 0
        return image

    @property
    def mixes(self) -> bool:
        return self.augment.mixup_alpha > 0 or self.augment.cutmix_alpha > 0

    def partner(self, position: int) -> int:
        """Position of the partner, at the same distance, around the batch, for all images of a batch."""
        batch, place = divmod(position, self.batch)
        distances = integers(
            self.seed, self.epoch, "mix distance", math.ceil(self.count / self.batch), self.batch - 1
        )
        return batch * self.batch + (place + 1 + distances[batch]) % self.batch

    def mix(self, image: Tensor, partner: Tensor, position: int) -> tuple[Tensor, float]:
        """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019); returns the image and its own share."""
        share = self._uniform("mix share")[position]
        mixup, cutmix = self.augment.mixup_alpha, self.augment.cutmix_alpha
        cuts = cutmix > 0 and (mixup == 0 or self._uniform("mix kind")[position] < 0.5)
        share = beta_quantile(cutmix if cuts else mixup, share)
        if not cuts:
            return share * image + (1 - share) * partner, share
        edges = []
        for name, side in zip(("row", "column"), self.size, strict=True):
            centre = self._integers(f"mix {name}", side)[position]
            half = int(math.sqrt(1 - share) * side / 2)
            edges.append(slice(max(0, centre - half), min(side, centre + half)))
        rows, columns = edges
        image = image.clone()
        image[:, rows, columns] = partner[:, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return image, 1 - area / (self.size[0] * self.size[1])


def beta_quantile(alpha: float, u: float) -> float:
    """Quantile of Beta(alpha, alpha) at `u`, for the values of alpha that have a formula."""
    if alpha == 1.0:
        return float(u)
    assert alpha == 0.5
    return math.sin(math.pi * u / 2) ** 2  # the arcsine distribution


def normalize(image: Pixels, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes [C, H, W] to float32: channel by channel (x / 255 - mean) / std."""
    channels = [
        (channel.astype(np.float64) / 255 - m) / s for channel, m, s in zip(image, mean, std, strict=True)
    ]
    return torch.from_numpy(np.stack(channels)).float()


def augmented(
    images: Sequence[Pixels],
    order: list[int],
    epoch: Epoch,
    position: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Tensor, float, int]:
    """Model input at a position of the order, the share of its own image, and the partner's position."""

    def alone(at: int) -> Tensor:
        image = epoch.crop_flip(images[order[at]], at)
        return epoch.erase(normalize(epoch.policy(image, at), mean, std), at)

    if not epoch.mixes:
        return alone(position), 1.0, position
    partner = epoch.partner(position)
    return *epoch.mix(alone(position), alone(partner), position), partner
