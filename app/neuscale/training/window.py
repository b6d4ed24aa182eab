"""Running sums between two points of the training curves."""

import torch
from torch import Tensor


class Window:
    """Sums of loss and correct predictions since the last point, on the device: no synchronisation per step.

    `sums`: float32 [2].
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, device=device)

    def add(self, logits: Tensor, labels: Tensor, mean_loss: Tensor) -> None:
        """Counts a micro-batch in: logits [B, classes], labels [B], its mean loss."""
        correct = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack([mean_loss.detach().float() * len(labels), correct.float()])

    def clear(self) -> None:
        self.sums.zero_()
