"""All augmentations of a batch: drawn as a function of (seed, epoch, position), and applied.

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
from neuscale.data.sampling import Positions, first_and_count, integer_draws, uniform_draws
from neuscale.errors import UsageError
from neuscale.project.targets import call, make


@dataclass(frozen=True)
class OwnFunction:
    """A user-defined function, and its draws, float64 [B, n] in [0, 1)."""

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
    """The augmentation of the images at some positions of an epoch, of which `first` is the first."""

    crops: CropFlip
    policy: list[Policy]
    jitter: Jitter | None
    erasing: Erasing | None
    mix: Mix | None
    own: OwnFunction | None = None
    first: int = 0

    def images(self, rows: Rows, normalize: Normalize, positions: slice) -> Tensor:
        """The augmented images at `positions`, B of them: float [B, C, H, W].

        `rows` are their bytes, followed by those of their partners if images are mixed; `normalize`
        converts bytes to float.
        """
        count, index = positions.stop - positions.start, self.index(positions)
        images = self._alone(rows[:count], normalize, index)
        if self.mix is None:
            return images
        mix = self.mix.at(index)
        return mix_images(images, self._alone(rows[count:], normalize, mix.partner - self.first), mix)

    def index(self, positions: slice) -> slice:
        """Index of `positions` in the tensors of this augmentation."""
        return slice(positions.start - self.first, positions.stop - self.first)

    def _alone(self, rows: Rows, normalize: Normalize, index: slice | Tensor) -> Tensor:
        crops = self.crops.at(index)
        untouched = not self.policy and self.jitter is None and self.own is None
        if untouched:  # no operation on bytes in between
            pixels = normalize.cropped(rows, crops)
        else:
            images = crop_flip(rows, crops)
            for layer in self.policy:
                images = apply_policy(images, layer.at(index))
            if self.jitter is not None:
                images = apply_jitter(images, self.jitter.at(index))
            if self.own is not None:
                images = self.own.at(index)(images)
            pixels = normalize(images)
        return pixels if self.erasing is None else apply_erasing(pixels, self.erasing.at(index))


def draw_augmentation(
    config: AugmentConfig,
    seed: int,
    epoch: int,
    positions: Positions,
    global_batch_size: int,
    size: tuple[int, int],
    device: torch.device,
    own: protocols.Augmentation | None = None,
) -> Augmentation:
    """Draw the augmentation of an epoch at `positions`, of images of `size` (height, width).

    `own`: the user-defined function, made once by `own_function`.
    """
    amounts = (config.brightness, config.contrast, config.saturation, config.hue)
    mixes = config.mixup_alpha or config.cutmix_alpha
    return Augmentation(
        crops=draw_crop_flip(config, seed, epoch, positions, device),
        policy=_draw_policy(config, seed, epoch, positions, size, device),
        jitter=draw_jitter(amounts, seed, epoch, positions, device) if any(amounts) else None,
        erasing=draw_erasing(config.erasing, seed, epoch, positions, size, device)
        if config.erasing
        else None,
        mix=draw_mix(
            config.mixup_alpha, config.cutmix_alpha, seed, epoch, positions, global_batch_size, size, device
        )
        if mixes
        else None,
        own=draw_own(config, seed, epoch, positions, device, own) if config.function is not None else None,
        first=first_and_count(positions)[0],
    )


def _draw_policy(
    config: AugmentConfig,
    seed: int,
    epoch: int,
    positions: Positions,
    size: tuple[int, int],
    device: torch.device,
) -> list[Policy]:
    layers = {"none": 0, "randaugment": config.policy_layers, "trivialaugment": 1}[config.policy]
    drawn = []
    for layer in range(layers):
        operation = torch.from_numpy(
            integer_draws(seed, epoch, f"policy operation {layer}", positions, OPERATIONS)
        )
        bins = torch.full_like(operation, config.policy_magnitude)
        if config.policy == "trivialaugment":
            bins = torch.from_numpy(integer_draws(seed, epoch, f"policy strength {layer}", positions, BINS))
        negative = torch.from_numpy(uniform_draws(seed, epoch, f"policy sign {layer}", positions) < 0.5)
        strength = strengths(config.policy, operation, bins, negative, size)
        drawn.append(Policy(operation.to(device), strength.to(device)))
    return drawn


def own_function(config: AugmentConfig) -> protocols.Augmentation | None:
    """The user-defined function of `config`. Raises UsageError if it cannot be imported."""
    if config.function is None:
        return None
    made: protocols.Augmentation = make(config.function, "augment.function")
    return made


def draw_own(
    config: AugmentConfig,
    seed: int,
    epoch: int,
    positions: Positions,
    device: torch.device,
    own: protocols.Augmentation | None = None,
) -> OwnFunction:
    """Draws of the user-defined function at `positions`; `own`: that function, made here where it is None."""
    columns = [uniform_draws(seed, epoch, f"own {i}", positions) for i in range(config.function_draws)]
    _, count = first_and_count(positions)
    draws = np.stack(columns, axis=1) if columns else np.zeros((count, 0))
    function = own if own is not None else own_function(config)
    assert function is not None
    return OwnFunction(function, torch.from_numpy(draws).to(device))
