"""Stochastic depth as a function of (seed, epoch, position): the same samples skip the same blocks on any
number of ranks, in any micro-batch and after any restart.
"""

import numpy as np
import torch
from torch import nn

from neuscale.data.sampling import uniform_draws
from neuscale.models.layers import BRANCHES, DropPath


class DropPathDraws:
    """Sets the masks of a model's DropPath layers for each micro-batch."""

    def __init__(self, model: nn.Module, seed: int, device: torch.device) -> None:
        self._layers = [layer for layer in model.modules() if isinstance(layer, DropPath) and layer.rate > 0]
        self._seed, self._device = seed, device

    def set(self, epoch: int, positions: slice) -> None:
        """Set the masks for the batch at `positions` of the epoch's order."""
        if not self._layers:
            return
        kept = np.stack(
            [
                uniform_draws(self._seed, epoch, f"drop path {i}.{branch}", positions) >= layer.rate
                for i, layer in enumerate(self._layers)
                for branch in range(BRANCHES)
            ]
        )
        drawn = torch.from_numpy(kept)
        if self._device.type == "cuda":  # so that the copy does not wait for the GPU
            drawn = drawn.pin_memory()
        masks = drawn.to(self._device, non_blocking=True).view(len(self._layers), BRANCHES, -1)
        for layer, mask in zip(self._layers, masks, strict=True):
            layer.scale = mask.float() / (1.0 - layer.rate)
