"""Data of this project: synthetic shapes. Replace them with your own images."""

from collections.abc import Iterator

import numpy as np


class Shapes:
    """Pairs of an image, uint8 [32, 32, 3], and its class; the same ones in every pass."""

    classes = ("disc", "square", "cross")

    def __init__(self, split: str, count: int = 1200) -> None:
        self.seed, self.count = (0, count) if split == "train" else (1, max(30, count // 6))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        random = np.random.default_rng(self.seed)
        for i in range(self.count):
            label = i % len(self.classes)
            y, x = np.mgrid[:32, :32] - random.uniform(11, 21, 2)[:, None, None]
            size = random.uniform(5, 9)
            disc, square = x**2 + y**2 < size**2, np.maximum(abs(x), abs(y)) < size
            cross = square & (np.minimum(abs(x), abs(y)) < size / 3)
            mask = (disc, square, cross)[label][:, :, None]
            colours = random.integers(0, 256, (2, 3))
            noise = random.normal(0, 20, (32, 32, 3))
            pixels = np.where(mask, colours[0], colours[1]) + noise
            yield pixels.clip(0, 255).astype(np.uint8), label
