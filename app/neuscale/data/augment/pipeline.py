"""All augmentations of an epoch: drawn once as a function of (seed, epoch), applied batch by batch.

Bytes are cropped and mirrored, then go through the policy, the colour jitter and the user-defined function,
and are normalised; floats are then erased and mixed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuscale import protocols
from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.color_jitter import Jitter, apply_jitter, draw_jitter
from neuscale.data.augment.crops import CropFlip, Normalize, Rows, crop_flip, draw_crop_flip
from neuscale.data.augment.erasing import Erasing, apply_erasing, draw_erasing
from neuscale.data.augment.mixing import Mix, draw_mix, mix_images
from neuscale.data.augment.policy import BINS, OPERATIONS, Policy, apply_policy, strengths
from neuscale.data.sampling import integer_draws, uniform_draws
from neuscale.errors import UsageError
from neuscale.project.targets import call, make


@dataclass(frozen=True)
class OwnFunction:
    """A user-defined function, and its draws by position, float64 [count, n] in [0, 1)."""

    function: protocols.Augmentation
    draws: Tensor

    def at(self, positions: slice | Tensor) -> "OwnFunction":
        return OwnFunction(self.function, self.draws[positions])

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] → the same shape and dtype. Raises UsageError for any other result."""
        found: Any = call(self.function, "augment.function", images, self.draws)
        if not isinstance(found, Tensor) or found.dtype != torch.uint8 or found.shape != images.shape:
            what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(
                f"augment.function: gives {what} for torch.uint8 {list(images.shape)}.",
                "Return as many images of this size, as bytes.",
            )
        return found


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of the image at each position of an epoch."""

    crops: CropFlip
    policy: list[Policy]
    jitter: Jitter | None
    erasing: Erasing | None
    mix: Mix | None
    own: OwnFunction | None = None

    def images(self, rows: Rows, normalize: Normalize, positions: slice) -> Tensor:
        """The augmented images at `positions`, B of them: float [B, C, H, W].

        `rows` are their bytes, followed by those of their partners if images are mixed; `normalize`
        converts bytes to float.
        """
        count = positions.stop - positions.start
        images = self._alone(rows[:count], normalize, positions)
        if self.mix is None:
            return images
        mix = self.mix.at(positions)
        return mix_images(images, self._alone(rows[count:], normalize, mix.partner), mix)

    def _alone(self, rows: Rows, normalize: Normalize, positions: slice | Tensor) -> Tensor:
        crops = self.crops.at(positions)
        untouched = not self.policy and self.jitter is None and self.own is None
        if untouched:  # no operation on bytes in between
            pixels = normalize.cropped(rows, crops)
        else:
            images = crop_flip(rows, crops)
            for layer in self.policy:
                images = apply_policy(images, layer.at(positions))
            if self.jitter is not None:
                images = apply_jitter(images, self.jitter.at(positions))
            if self.own is not None:
                images = self.own.at(positions)(images)
            pixels = normalize(images)
        return pixels if self.erasing is None else apply_erasing(pixels, self.erasing.at(positions))


def draw_augmentation(
    config: AugmentConfig,
    seed: int,
    epoch: int,
    count: int,
    global_batch_size: int,
    size: tuple[int, int],
    device: torch.device,
) -> Augmentation:
    """Draw the augmentation of an epoch of `count` images of `size` (height, width)."""
    amounts = (config.brightness, config.contrast, config.saturation, config.hue)
    mixes = config.mixup_alpha or config.cutmix_alpha
    return Augmentation(
        crops=draw_crop_flip(config, seed, epoch, count, device),
        policy=_draw_policy(config, seed, epoch, count, size, device),
        jitter=draw_jitter(amounts, seed, epoch, count, device) if any(amounts) else None,
        erasing=draw_erasing(config.erasing, seed, epoch, count, size, device) if config.erasing else None,
        mix=draw_mix(
            config.mixup_alpha, config.cutmix_alpha, seed, epoch, count, global_batch_size, size, device
        )
        if mixes
        else None,
        own=draw_own(config, seed, epoch, count, device) if config.function is not None else None,
    )


def _draw_policy(
    config: AugmentConfig, seed: int, epoch: int, count: int, size: tuple[int, int], device: torch.device
) -> list[Policy]:
    layers = {"none": 0, "randaugment": config.policy_layers, "trivialaugment": 1}[config.policy]
    drawn = []
    for layer in range(layers):
        operation = torch.from_numpy(
            integer_draws(seed, epoch, f"policy operation {layer}", count, OPERATIONS)
        )
        bins = torch.full((count,), config.policy_magnitude)
        if config.policy == "trivialaugment":
            bins = torch.from_numpy(integer_draws(seed, epoch, f"policy strength {layer}", count, BINS))
        negative = torch.from_numpy(uniform_draws(seed, epoch, f"policy sign {layer}", count) < 0.5)
        strength = strengths(config.policy, operation, bins, negative, size)
        drawn.append(Policy(operation.to(device), strength.to(device)))
    return drawn


def draw_own(config: AugmentConfig, seed: int, epoch: int, count: int, device: torch.device) -> OwnFunction:
    """Draws for an epoch of `count` positions. Raises UsageError if the function cannot be imported."""
    assert config.function is not None
    columns = [uniform_draws(seed, epoch, f"own {i}", count) for i in range(config.function_draws)]
    draws = np.stack(columns, axis=1) if columns else np.zeros((count, 0))
    return OwnFunction(make(config.function, "augment.function"), torch.from_numpy(draws).to(device))
