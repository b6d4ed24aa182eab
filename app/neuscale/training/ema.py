"""An exponential moving average of the weights (Polyak & Juditsky 1992), which often evaluates better."""

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of `model`'s state; `state`: its state dict, under the model's own names.

    Early on the decay is (1 + n) / (10 + n) after n updates, so that the random start is soon forgotten.
    Whole numbers among the buffers are taken over as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._live = model.state_dict()
        pairs = [(value, self._live[name]) for name, value in self.state.items()]  # always the same tensors
        self._averaged = [(value, live) for value, live in pairs if value.is_floating_point()]
        self._taken = [(value, live) for value, live in pairs if not value.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Counts the model's present weights in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, live = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(averages, live, 1 - decay)
        for value, now in self._taken:
            value.copy_(now)

    def load(self, state: dict[str, Tensor], updates: int) -> None:
        """Goes on from an average of this model."""
        self.updates = updates
        for name, value in self.state.items():
            value.copy_(state[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's weights with the average; a second call puts them back."""
        for name, value in self.state.items():
            live = self._live[name]
            kept = live.clone()
            live.copy_(value)
            value.copy_(kept)
