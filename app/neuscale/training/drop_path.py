"""Stochastic depth as a function of (seed, epoch, position): the same samples skip the same blocks on any
number of ranks, in any micro-batch and after any restart.
"""

import numpy as np
import torch
from torch import Tensor, nn

from neuscale.data.sampling import uniform_draws
from neuscale.models.layers import BRANCHES, DropPath


class DropPathDraws:
    """Sets the masks of a model's DropPath layers for each micro-batch."""

    def __init__(self, model: nn.Module, seed: int, count: int, device: torch.device) -> None:
        self._layers = [layer for layer in model.modules() if isinstance(layer, DropPath) and layer.rate > 0]
        self._seed, self._count, self._device = seed, count, device
        self._epoch = -1
        self._kept = torch.empty(0)

    def set(self, epoch: int, positions: slice) -> None:
        """Set the masks for the batch at `positions` of the epoch's order."""
        if not self._layers:
            return
        if epoch != self._epoch:
            self._kept, self._epoch = self._draw(epoch), epoch
        for layer, kept in zip(self._layers, self._kept, strict=True):
            layer.scale = kept[:, positions].float() / (1.0 - layer.rate)

    def _draw(self, epoch: int) -> Tensor:
        """Mask of the positions that keep a branch of a layer: bool [layers, branches, count]."""
        kept = [
            [
                uniform_draws(self._seed, epoch, f"drop path {i}.{branch}", self._count) >= layer.rate
                for branch in range(BRANCHES)
            ]
            for i, layer in enumerate(self._layers)
        ]
        return torch.from_numpy(np.array(kept)).to(self._device)
