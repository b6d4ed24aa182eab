"""RandAugment and TrivialAugment on whole batches of bytes, each image with its own operations.

The operations, their ranges and their rounding are torchvision's (`RandAugment`, Cubuk et
al. 2020; `TrivialAugmentWide`, Müller & Hutter 2021), which apply one operation to the
whole batch; here a batch is split by operation, and strengths are per image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 31


# The geometric operations come first: all are done in one resampling with a matrix per image.
SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(5)


BRIGHTNESS, COLOR, CONTRAST, SHARPNESS, POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE, IDENTITY = range(5, 14)


OPERATIONS = 14


_GEOMETRIC = ROTATE + 1


_SIGNED = SHARPNESS + 1  # operations below this have a signed strength


@dataclass(frozen=True)
class Policy:
    """One layer of operations for some images, tensors of shape [B].

    `operation`: int64, 0 … 13; `strength`: float32, in the operation's own unit, signed.
    """

    operation: Tensor
    strength: Tensor

    def at(self, positions: slice | Tensor) -> "Policy":
        return Policy(self.operation[positions], self.strength[positions])


def strengths(name: str, operation: Tensor, bins: Tensor, negative: Tensor, size: tuple[int, int]) -> Tensor:
    """Strength of each operation for its bin 0 … 30: all of shape [B] → float32 [B].

    `name`: "randaugment" or "trivialaugment"; `size`: height and width in pixels.
    """
    table = _table(name, size).to(bins.device)
    strength = table[operation, bins]
    return torch.where(negative & (operation < _SIGNED), -strength, strength)


@cache
def _table(name: str, size: tuple[int, int]) -> Tensor:
    height, width = size
    wide = name == "trivialaugment"
    tops = {
        SHEAR_X: 0.99 if wide else 0.3,
        SHEAR_Y: 0.99 if wide else 0.3,
        TRANSLATE_X: 32.0 if wide else 150.0 / 331.0 * width,
        TRANSLATE_Y: 32.0 if wide else 150.0 / 331.0 * height,
        ROTATE: 135.0 if wide else 30.0,
        **dict.fromkeys((BRIGHTNESS, COLOR, CONTRAST, SHARPNESS), 0.99 if wide else 0.9),
    }
    table = torch.zeros(OPERATIONS, BINS)
    for operation, top in tops.items():
        table[operation] = torch.linspace(0.0, top, BINS)
    table[POSTERIZE] = 8 - (torch.arange(BINS) / ((BINS - 1) / (6 if wide else 4))).round()
    table[SOLARIZE] = torch.linspace(255.0, 0.0, BINS)
    for operation in (TRANSLATE_X, TRANSLATE_Y):
        table[operation] = table[operation].trunc()
    return table


def apply_policy(images: Tensor, policy: Policy) -> Tensor:
    """uint8 [B, C, H, W] → uint8 [B, C, H, W]. Synchronises with the device once, to split the batch."""
    result = images.clone()
    counts = torch.bincount(policy.operation, minlength=OPERATIONS).tolist()
    order = policy.operation.argsort(stable=True)
    geometric = order[: sum(counts[:_GEOMETRIC])]
    if len(geometric):
        result[geometric] = _resample(images[geometric], policy.at(geometric))
    first = len(geometric)
    for operation in range(_GEOMETRIC, IDENTITY):
        chosen = order[first : first + counts[operation]]
        first += counts[operation]
        if len(chosen):
            result[chosen] = _PHOTOMETRIC[operation](images[chosen], policy.strength[chosen])
    return result


def _resample(images: Tensor, policy: Policy) -> Tensor:
    """Shear, translate and rotate in one nearest-neighbour resampling; pixels from outside are black."""
    _, _, H, W = images.shape
    operation, strength = policy.operation, policy.strength
    zero, one = torch.zeros_like(strength), torch.ones_like(strength)

    def only(which: int, value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(operation == which, value, otherwise)

    angle = torch.deg2rad(strength)
    # Pixel (x, y) of the result comes from (a·x + b·y + c, d·x + e·y + f).
    a = e = only(ROTATE, angle.cos(), one)
    b = only(SHEAR_X, strength, only(ROTATE, -angle.sin(), zero))
    d = only(SHEAR_Y, strength, only(ROTATE, angle.sin(), zero))
    c, f = only(TRANSLATE_X, -strength, zero), only(TRANSLATE_Y, -strength, zero)
    # Shears are relative to the corner, rotations to the centre.
    middle_x = only(ROTATE, one * (W * 0.5), zero)
    middle_y = only(ROTATE, one * (H * 0.5), zero)
    c = c + middle_x - a * middle_x - b * middle_y
    f = f + middle_y - d * middle_x - e * middle_y

    x = torch.arange(W, device=images.device) + 0.5
    y = torch.arange(H, device=images.device) + 0.5
    from_x = a[:, None, None] * x + b[:, None, None] * y[:, None] + c[:, None, None]
    from_y = d[:, None, None] * x + e[:, None, None] * y[:, None] + f[:, None, None]
    grid = torch.stack([from_x * (2 / W) - 1, from_y * (2 / H) - 1], dim=-1)
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def _blend(images: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """`images` moved away from `other` by the factor 1 + strength."""
    factor = (1.0 + strength)[:, None, None, None]
    return (images.float() * factor + other * (1.0 - factor)).clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Luminance [B, 1, H, W], integers as float32."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor().unsqueeze(1)


def adjust_brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Multiply the brightness of uint8 [B, C, H, W] by 1 + strength [B]."""
    return _blend(images, torch.zeros((), device=images.device), strength)


def adjust_saturation(images: Tensor, strength: Tensor) -> Tensor:
    """Multiply the distance from gray of uint8 [B, C, H, W] by 1 + strength [B]."""
    return images if images.shape[1] == 1 else _blend(images, _gray(images), strength)


def adjust_contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Multiply the distance from the mean luminance of uint8 [B, C, H, W] by 1 + strength [B]."""
    return _blend(images, _gray(images).mean((1, 2, 3), keepdim=True), strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    C, H, W = images.shape[1:]
    if H <= 2 or W <= 2:
        return images
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5.0
    blurred = images.float()
    inside = F.conv2d(blurred, (kernel / 13).expand(C, 1, 3, 3), groups=C).round()
    blurred = blurred.clone()
    blurred[:, :, 1:-1, 1:-1] = inside
    return _blend(images, blurred, strength)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    mask = 256 - torch.bitwise_left_shift(torch.ones_like(strength, dtype=torch.int64), 8 - strength.long())
    return images & mask.to(torch.uint8)[:, None, None, None]


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images >= strength[:, None, None, None], 255 - images, images)


def _autocontrast(images: Tensor, _strength: Tensor) -> Tensor:
    pixels = images.float()
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = low == high
    low = low.masked_fill(flat, 0.0)
    span = torch.where(flat, torch.full_like(high, 255.0), high - low)
    return ((pixels - low) * 255.0 / span).clamp(0, 255).to(torch.uint8)


def _equalize(images: Tensor, _strength: Tensor) -> Tensor:
    """Equalise the histogram of each channel, as PIL's `ImageOps.equalize`."""
    B, C, H, W = images.shape
    flat = images.view(B * C, H * W).long()
    histogram = torch.zeros(B * C, 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    cumulative = histogram.cumsum(1)
    # The brightest value present does not count towards the step.
    brightest = flat.amax(1, keepdim=True)
    step = (H * W - histogram.gather(1, brightest)) // 255
    lookup = (cumulative - histogram + step // 2) // step.clamp(min=1)
    result = torch.where(step > 0, lookup.clamp(0, 255).gather(1, flat), flat)
    return result.view(B, C, H, W).to(torch.uint8)


_PHOTOMETRIC: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    BRIGHTNESS: adjust_brightness,
    COLOR: adjust_saturation,
    CONTRAST: adjust_contrast,
    SHARPNESS: _sharpness,
    POSTERIZE: _posterize,
    SOLARIZE: _solarize,
    AUTOCONTRAST: _autocontrast,
    EQUALIZE: _equalize,
}
