"""Colour jitter on whole batches: brightness, contrast, saturation and hue, drawn for each image."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuscale.data.augment.policy import adjust_brightness, adjust_contrast, adjust_saturation
from neuscale.data.sampling import Positions, uniform_draws


@dataclass(frozen=True)
class Jitter:
    """Changes of brightness, contrast and saturation (0: none), and rotations of hue; each [B].

    None for a property that is not jittered.
    """

    brightness: Tensor | None
    contrast: Tensor | None
    saturation: Tensor | None
    hue: Tensor | None

    def at(self, positions: slice | Tensor) -> "Jitter":
        parts = (self.brightness, self.contrast, self.saturation, self.hue)
        return Jitter(*(None if part is None else part[positions] for part in parts))


def draw_jitter(
    amounts: tuple[float, float, float, float],
    seed: int,
    epoch: int,
    positions: Positions,
    device: torch.device,
) -> Jitter:
    """Draw uniform factors in 1 ± amount (at least 0) for the first three, and rotations in ± hue."""
    parts: list[Tensor | None] = []
    for name, amount in zip(("brightness", "contrast", "saturation", "hue"), amounts, strict=True):
        if not amount:
            parts.append(None)
            continue
        low = -amount if name == "hue" else -min(1.0, amount)
        change = low + (amount - low) * uniform_draws(seed, epoch, f"jitter {name}", positions)
        parts.append(torch.from_numpy(change.astype(np.float32)).to(device))
    return Jitter(*parts)


def apply_jitter(images: Tensor, jitter: Jitter) -> Tensor:
    """Jitter uint8 [B, C, H, W], in the order brightness, contrast, saturation, hue."""
    if jitter.brightness is not None:
        images = adjust_brightness(images, jitter.brightness)
    if jitter.contrast is not None:
        images = adjust_contrast(images, jitter.contrast)
    if jitter.saturation is not None:
        images = adjust_saturation(images, jitter.saturation)
    if jitter.hue is not None:
        images = turn_hue(images, jitter.hue)
    return images


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of uint8 [B, C, H, W] by `turns` [B] of the colour circle; grayscale is unchanged."""
    if images.shape[1] == 1:
        return images
    pixels = images.float() / 255
    red, green, blue = pixels.unbind(1)
    value, low = pixels.amax(1), pixels.amin(1)
    span = value - low
    safe = span.clamp(min=1e-8)
    # Hue in sixths of the circle; the formula depends on which channel is the largest.
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sixth = sixth + 6.0 * turns[:, None, None]
    # Each channel from hue, saturation and value in one formula (Smith 1978, rewritten).
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    k = (offsets + sixth[:, None]) % 6.0
    turned = value[:, None] - span[:, None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)
    return (turned * 255).round().clamp(0, 255).to(torch.uint8)
