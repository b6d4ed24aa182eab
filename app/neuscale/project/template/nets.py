"""Models of this project."""

import torch
from torch import nn


class MyNet(nn.Module):
    """Convolutions over patches: [B, in_channels, S, S] → [B, num_classes]."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, 4, 4)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.patches(images)).mean((2, 3)))


class Block(nn.Module):
    """A convolution with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)
