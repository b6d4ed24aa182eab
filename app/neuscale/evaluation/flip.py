"""Test-time augmentation by mirroring."""

import torch
from torch import Tensor, nn


class FlipAveraged(nn.Module):
    """The mean of what `model` says about an image and about its mirror image.

    [B, C, H, W] → log-probabilities [B, classes], which serve as logits: probabilities are averaged.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        here = self.model(images).float().log_softmax(1)
        mirrored = self.model(images.flip(-1)).float().log_softmax(1)
        return torch.logaddexp(here, mirrored) - torch.log(torch.tensor(2.0))
