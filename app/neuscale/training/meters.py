"""What a run says of itself between two points of its curves, without waiting for the device at each step."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from neuscale.training.metrics import TIMINGS as TIMINGS

T = TypeVar("T")


class Window:
    """Sums of loss and correct predictions since the last point, on the device.

    `sums`: float32 [2], over `steps` steps; `bad`: the first step whose loss was not finite, -1 while there
    is none.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, device=device)
        self.steps = 0
        self.bad = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, step: int, sums: Tensor) -> None:
        """Counts the `batch_sums` of this process's images of a step in."""
        self.sums += sums
        self.steps += 1
        self.bad = torch.where((self.bad < 0) & ~torch.isfinite(sums[0]), step, self.bad)

    def clear(self) -> None:
        """Begins the next window."""
        self.sums.zero_()
        self.steps = 0


def batch_sums(logits: Tensor, labels: Tensor, mean_loss: Tensor) -> Tensor:
    """Sum of the losses and number of correct predictions of a micro-batch: float32 [2].

    logits [B, classes], labels [B], and the mean loss of them.
    """
    correct = (logits.detach().argmax(1) == labels).sum()
    return torch.stack([mean_loss.detach().float() * len(labels), correct.float()])


@dataclass
class Clock:
    """Time of training, of this process: `seconds` without evaluations, `waited` of them for data."""

    seconds: float = 0.0
    waited: float = 0.0
    _point: tuple[float, float, int] = (0.0, 0.0, 0)

    def start(self, step: int) -> None:
        """Counts from here for the next `since`."""
        self._point = (self.seconds, self.waited, step)

    def since(self, step: int) -> tuple[float, float, int]:
        """Seconds, seconds waited and steps since the last call."""
        seconds, waited, first = self._point
        self.start(step)
        return self.seconds - seconds, self.waited - waited, step - first

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`; the time between asking for one and asking for the next is training."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            waited = time.perf_counter() - began
            try:
                yield batch
            finally:  # also after the last step before a stop, whose next batch is not asked for
                self.waited += waited
                self.seconds += time.perf_counter() - began


def memory_gigabytes(device: torch.device) -> float:
    """The most that tensors took on a GPU so far; of a CPU process, its resident set at its largest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
