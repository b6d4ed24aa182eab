"""Common corruptions at five severities, after Hendrycks & Dietterich 2019 (arXiv:1903.12261).

The kinds that make sense on small images, with the strengths of CIFAR-10-C; all work on whole batches of
bytes. All randomness is a function of (seed, kind, severity, image) and depends neither on the batch nor on
the number of ranks. Fog is value noise in octaves in place of the paper's plasma fractal.
"""

import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from neuscale.pictures import to_image

SEVERITIES = (1, 2, 3, 4, 5)

Samples = NDArray[np.int64]
# images in 0 … 1 [B, C, H, W], severity 0 … 4, a generator for each image → images, to be clamped
_Corruption = Callable[[Tensor, int, Iterator[np.random.Generator]], Tensor]


def corrupt(images: Tensor, samples: Samples, kind: str, severity: int, seed: int) -> Tensor:
    """Corrupt images, uint8 [B, C, H, W]; `samples`: their indices in the data set."""
    generators = _generators(kind, severity, seed, samples)
    changed = CORRUPTIONS[kind](images.float() / 255, severity - 1, generators)
    return (changed.clamp(0, 1) * 255).round().to(torch.uint8)


def _generators(kind: str, severity: int, seed: int, samples: Samples) -> Iterator[np.random.Generator]:
    sequence = np.random.SeedSequence([seed, severity, zlib.crc32(kind.encode())])
    key = sequence.generate_state(2, np.uint64)
    for sample in samples.tolist():  # in the counter's highest word: streams of two images never overlap
        yield np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, sample]))


def _gaussian_noise(x: Tensor, severity: int, random: Iterator[np.random.Generator]) -> Tensor:
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[severity]
    return x + scale * _drawn(x, [g.standard_normal(x.shape[1:], np.float32) for g in random])


def _shot_noise(x: Tensor, severity: int, random: Iterator[np.random.Generator]) -> Tensor:
    photons = (500, 250, 100, 75, 50)[severity]
    expected = (x * photons).cpu().numpy()
    return _drawn(x, [g.poisson(image) for g, image in zip(random, expected, strict=True)]) / photons


def _impulse_noise(x: Tensor, severity: int, random: Iterator[np.random.Generator]) -> Tensor:
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    uniform = _drawn(x, [g.random(x.shape[1:], np.float32) for g in random])
    return torch.where(uniform < amount / 2, 0.0, torch.where(uniform < amount, 1.0, x))


def _defocus_blur(x: Tensor, severity: int, _: Iterator[np.random.Generator]) -> Tensor:
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity]
    reach = torch.arange(-2, 3, dtype=torch.float32)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).float()
    soft = torch.exp(-(torch.arange(-1, 2, dtype=torch.float32) ** 2) / (2 * sigma**2))
    soft = (soft[:, None] * soft) / soft.sum() ** 2
    kernel = F.conv2d(F.pad(disk / disk.sum(), (1, 1, 1, 1))[None, None], soft[None, None], padding=1)
    B, C, H, W = x.shape
    padded = F.pad(x.reshape(B * C, 1, H, W), (3, 3, 3, 3), mode="reflect")
    return F.conv2d(padded, kernel.to(x.device)).view(B, C, H, W)


def _motion_blur(x: Tensor, severity: int, random: Iterator[np.random.Generator]) -> Tensor:
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity]
    angle = np.radians([g.uniform(-45, 45) for g in random])
    B, _, H, W = x.shape
    rows, columns = torch.arange(H, device=x.device), torch.arange(W, device=x.device)
    weights = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
    image = torch.arange(B, device=x.device)[:, None, None]
    last = x.permute(0, 2, 3, 1)
    total = torch.zeros_like(last)
    for step, weight in enumerate(weights / weights.sum()):
        down = torch.from_numpy(np.rint(step * np.sin(angle))).long().to(x.device)
        right = torch.from_numpy(np.rint(step * np.cos(angle))).long().to(x.device)
        row = (rows + down[:, None]).clamp(0, H - 1)[:, :, None]
        column = (columns + right[:, None]).clamp(0, W - 1)[:, None, :]
        total += float(weight) * last[image, row, column]
    return total.permute(0, 3, 1, 2)


def _fog(x: Tensor, severity: int, random: Iterator[np.random.Generator]) -> Tensor:
    thickness, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity]
    octaves = [2**i for i in range(1, 10) if 2**i <= max(x.shape[-2:])] or [1]
    draws = _drawn(x, [g.random(sum(side * side for side in octaves), np.float32) for g in random])
    fog = torch.zeros(len(x), 1, *x.shape[-2:], device=x.device)
    for i, part in enumerate(torch.split(draws, [side * side for side in octaves], dim=1)):
        grid = part.view(-1, 1, octaves[i], octaves[i])
        fog += F.interpolate(grid, x.shape[-2:], mode="bilinear", align_corners=True) / decay**i
    low, high = fog.amin((1, 2, 3), keepdim=True), fog.amax((1, 2, 3), keepdim=True)
    brightest = x.amax((1, 2, 3), keepdim=True)
    fogged = x + thickness * (fog - low) / (high - low).clamp(min=1e-6)
    return fogged * brightest / (brightest + thickness)


def _brightness(x: Tensor, severity: int, _: Iterator[np.random.Generator]) -> Tensor:
    """Raise the value of HSV; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + (0.05, 0.10, 0.15, 0.20, 0.30)[severity]).clamp(max=1)
    return torch.where(value > 0, x * raised / value.clamp(min=1 / 512), raised)


def _contrast(x: Tensor, severity: int, _: Iterator[np.random.Generator]) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity] + mean


def _pixelate(x: Tensor, severity: int, _: Iterator[np.random.Generator]) -> Tensor:
    scale = (0.95, 0.9, 0.85, 0.75, 0.65)[severity]

    def coarse(image: Image.Image) -> Image.Image:
        small = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)

    return _by_pillow(x, coarse)


def _jpeg(x: Tensor, severity: int, _: Iterator[np.random.Generator]) -> Tensor:
    quality = (80, 65, 58, 50, 40)[severity]

    def compressed(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality)
        return Image.open(buffer, formats=("JPEG",))

    return _by_pillow(x, compressed)


def _by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Apply `change` to each image of x as an 8-bit PIL image."""
    changed = []
    for pixels in (x * 255).round().to(torch.uint8).cpu().numpy():
        after = np.asarray(change(to_image(pixels)), np.float32) / 255
        changed.append(after[None] if after.ndim == 2 else after.transpose(2, 0, 1))
    return _drawn(x, changed)


def _drawn(like: Tensor, arrays: Sequence[NDArray[Any]]) -> Tensor:
    """Stack one array per image into a tensor on the device of `like`."""
    return torch.from_numpy(np.stack(arrays).astype(np.float32)).to(like.device)


CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "motion_blur": _motion_blur,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
