"""A trained model with its preprocessing inside: bytes of images to scores of classes."""

import torch
from torch import Tensor, nn

from neuscale.data.augment import normalize, resize
from neuscale.evaluation.preprocessing import Preprocessing


class Classifier(nn.Module):
    """Images as bytes, uint8 [B, C, H, W] → logits float32 [B, classes].

    Who uses it has no mean and no deviation to get wrong. `preprocessing` says C, H and W.
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
        images = resize(normalize(images, self.mean, self.std), self.preprocessing.image_size)
        return self.model(images)

    def decode(self, content: bytes) -> Tensor:
        """An image file as the model takes it: uint8 [1, C, H, W]."""
        return torch.from_numpy(self.preprocessing.decode(content).copy())[None]
