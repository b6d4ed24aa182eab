"""From an image file to what a trained model takes: the one record of it, for prediction and export."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from neuscale.config import Config
from neuscale.data.augment import normalize, resize
from neuscale.data.listed import ListedDataset
from neuscale.data.prepared import Dataset
from neuscale.data.sources.decode import decode_image


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the model sees it, as validation does it.

    A file is decoded to `height`×`width` pixels of `channels`, normalised by `mean` and `std` (per
    channel, for values in 0..1) and, where `image_size` is another, resized to that side.
    """

    channels: int
    height: int
    width: int
    image_size: int
    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, config: Config, data: Dataset) -> "Preprocessing":
        """That of a run's validation."""
        meta = data.meta
        size = config.data.image_size or meta.height
        # Files are decoded at the model's size at once; packed images are resized on the device.
        height, width = (size, size) if isinstance(data, ListedDataset) else (meta.height, meta.width)
        return cls(meta.channels, height, width, size, meta.mean, meta.std)

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """An image file's pixels: uint8 [C, H, W].

        The shorter side is made to fit and the middle kept, as `neuscale data prepare --size` does.
        Raises nearly anything where the file is damaged.
        """
        pixels = decode_image(content, (self.width, self.height))
        if self.channels == 1:
            return np.asarray(Image.fromarray(pixels).convert("L"))[None]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def model_input(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] → float32 [B, C, S, S], on the same device."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device)
        return resize(normalize(images, mean, std), self.image_size)

    def record(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return asdict(self)
