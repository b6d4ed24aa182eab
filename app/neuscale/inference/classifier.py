"""A trained model that includes its preprocessing: from uint8 images to logits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from neuscale.config import Config, config_from_yaml
from neuscale.data.augment.crops import normalize, resize, side_before_crop
from neuscale.data.datasets import Dataset
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.sources.decode import decode_image
from neuscale.data.sources.decoding import Decoding
from neuscale.errors import CheckpointError
from neuscale.models.registry import create_model
from neuscale.models.weights import load_weights
from neuscale.project.targets import imported_modules
from neuscale.project.trust import check_targets
from neuscale.untrusted import check_regular, read_json, reason_of


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image for the model, as in validation.

    A file is decoded to `height`×`width` pixels of `channels`, normalised by `mean` and `std` (per
    channel, for values in 0 … 1) and, if it has another size, resized to side `image_size` with
    `interpolation` and `crop` (see `resize`). `fit` and `value_range` (of 16-bit images): see `Decoding`.
    """

    channels: int
    height: int
    width: int
    image_size: int
    mean: list[float]
    std: list[float]
    fit: str = "crop"
    value_range: Sequence[int] = (0, 65535)
    interpolation: str = "bilinear"
    crop: float = 1.0

    @classmethod
    def of(cls, config: Config, data: Dataset) -> "Preprocessing":
        """Preprocessing of a run's validation images."""
        meta = data.meta
        size = config.data.image_size or meta.height
        interpolation, crop = config.data.interpolation or "bilinear", config.data.crop or 1.0
        # Image files are decoded directly at the model's size; packed images are resized on the device.
        side = side_before_crop(size, crop)
        height, width = (side, side) if isinstance(data, ListedDataset) else (meta.height, meta.width)
        decoding = Decoding.recorded(meta.source, (width, height))
        values = (decoding.low, decoding.high)
        return cls(
            meta.channels,
            height,
            width,
            size,
            meta.mean,
            meta.std,
            decoding.fit,
            values,
            interpolation,
            crop,
        )

    @property
    def resizes(self) -> bool:
        """True where decoded images are of another size than the model, and resized after normalisation."""
        side = side_before_crop(self.image_size, self.crop)
        return (self.height, self.width) != (side, side)

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """Decode the content of an image file: uint8 [C, H, W].

        The image is turned upright and fitted like the training images (see `Decoding`). A damaged file
        can raise almost any error.
        """
        low, high = self.value_range
        pixels = decode_image(content, Decoding((self.width, self.height), self.fit, low, high))
        if self.channels == 1:
            return np.asarray(Image.fromarray(pixels).convert("L"))[None]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def model_input(self, images: Tensor) -> Tensor:
        """Normalise and resize: uint8 [B, C, H, W] → float32 [B, C, S, S], on the same device."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device)
        return self.resized(normalize(images, mean, std))

    def resized(self, images: Tensor) -> Tensor:
        """Resize to side S, `image_size`: float [B, C, H, W] → [B, C, S, S]."""
        return resize(images, self.image_size, self.interpolation, self.crop)

    def record(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return asdict(self)


class Classifier(nn.Module):
    """Model with built-in preprocessing: uint8 [B, C, H, W] → logits float32 [B, classes].

    Callers need no mean or standard deviation. C, H and W are fields of `preprocessing`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, classes: list[str]) -> None:
        super().__init__()
        self.model = model
        self.preprocessing, self.classes = preprocessing, classes
        self.register_buffer("mean", torch.tensor(preprocessing.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(preprocessing.std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.model_input(images))

    def model_input(self, images: Tensor) -> Tensor:
        """Normalise and resize: uint8 [B, C, H, W] → float32 [B, C, S, S]."""
        return self.preprocessing.resized(normalize(images, self.mean, self.std))

    def decode(self, content: bytes) -> Tensor:
        """Decode the content of an image file to model input: uint8 [1, C, H, W]."""
        return torch.from_numpy(self.preprocessing.decode(content).copy())[None]


RECORD = "model.json"


FILES = {
    "safetensors": "model.safetensors",
    "torch": "model.pt2",
    "onnx": "model.onnx",
    "openvino": "model.xml",
}


def load_exported(folder: str | Path) -> Classifier:
    """Load a model exported by `neuscale export --to safetensors`, on the CPU, in evaluation mode.

    Raises CheckpointError if it is missing or damaged, UsageError if it would run code that is not trusted.
    """
    folder = Path(folder)
    record = read_record(folder)
    try:
        preprocessing = Preprocessing(**record["preprocessing"])
        classes: list[str] = record["classes"]
        config = config_from_yaml(record["config"], [], str(folder / RECORD))
        check_regular(folder / FILES["safetensors"])
        state = load_file(folder / FILES["safetensors"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder / FILES['safetensors']}: there is no such file.", "Export the run as safetensors."
        ) from error
    except Exception as error:  # a damaged file can raise almost any error
        raise CheckpointError(f"{folder}: is not an exported model ({error}).", "Export it again.") from error
    check_targets(asdict(config), list(imported_modules()), str(folder))
    model = create_model(
        config.model, preprocessing.image_size, preprocessing.channels, len(classes), config.run.seed
    )
    load_weights(model, state, str(folder))
    return Classifier(model, preprocessing, classes).eval()


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record model.json of an exported model. Raises CheckpointError if it is missing or invalid."""
    try:
        record = read_json(folder / RECORD)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / RECORD}: not readable ({reason_of(error)}).", "Export the run again."
        ) from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{folder / RECORD}: holds no record of a model.", "Export the run again.")
    return record
