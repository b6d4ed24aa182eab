"""Exponential moving average of the weights (Polyak & Juditsky 1992), which often evaluates better."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The moving average of a model's state dict; `average` has the same names as the model's.

    After n updates the decay is at most (1 + n) / (10 + n), so that the random start is soon forgotten.
    Integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._live = model.state_dict()
        pairs = [(value, self._live[name]) for name, value in self.average.items()]  # always the same tensors
        self._averaged = [(value, live) for value, live in pairs if value.is_floating_point()]
        self._taken = [(value, live) for value, live in pairs if not value.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, live = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, live, 1 - decay)
        for value, now in self._taken:
            value.copy_(now)

    def load(self, average: dict[str, Tensor], updates: int) -> None:
        """Resume from an average of this model after `updates` updates."""
        self.updates = updates
        for name, value in self.average.items():
            value.copy_(average[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Context in which the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.average.items():
            live = self._live[name]
            kept = live.clone()
            live.copy_(value)
            value.copy_(kept)
