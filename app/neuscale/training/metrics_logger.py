"""Metrics of the training steps, accumulated without synchronising the device at each step."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from neuscale.distributed.accelerator import Accelerator

T = TypeVar("T")


class RunningSums:
    """Sums of loss and correct predictions since the last point of the curves, on the device.

    `sums`: float32 [2], over `steps` steps. `bad`: the first step whose loss was not finite, else -1.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(2, device=device)
        self.steps = 0
        self.bad = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, step: int, sums: Tensor) -> None:
        """Add the `batch_sums` of this rank's images of a step."""
        self.sums += sums
        self.steps += 1
        self.bad = torch.where((self.bad < 0) & ~torch.isfinite(sums[0]), step, self.bad)

    def clear(self) -> None:
        """Reset the sums to zero."""
        self.sums.zero_()
        self.steps = 0


@dataclass
class Timer:
    """Training seconds of this process, without evaluations; `waited`: those spent waiting for data."""

    seconds: float = 0.0
    waited: float = 0.0
    _point: tuple[float, float, int] = (0.0, 0.0, 0)

    def start(self, step: int) -> None:
        """Start the interval that the next `since` measures."""
        self._point = (self.seconds, self.waited, step)

    def since(self, step: int) -> tuple[float, float, int]:
        """Seconds, seconds spent waiting for data, and steps since the last call."""
        seconds, waited, first = self._point
        self.start(step)
        return self.seconds - seconds, self.waited - waited, step - first

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches; the time from requesting one until requesting the next is training time."""
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
    """Memory in GB: peak of tensors on CUDA, current allocation on MPS, else peak resident set size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


class MetricsLogger:
    """Loss, accuracy and speed of the steps since the last point of the curves.

    `flops`: floating-point operations to train on one image, None if they cannot be counted. `peak`:
    TFLOP/s of one device, None if unknown.
    """

    def __init__(self, accelerator: Accelerator, batch_size: int, flops: float | None, peak: float | None):
        self.accelerator, self.batch_size, self.flops, self.peak = accelerator, batch_size, flops, peak
        self.running = RunningSums(accelerator.device)
        self.timer = Timer()

    def add(self, step: int, sums: Tensor) -> None:
        """Add the `batch_sums` of this rank's images of a step."""
        self.running.add(step, sums)

    def values(
        self, step: int, lr: float, check_finite: Callable[[], None], is_last: bool = False
    ) -> dict[str, float]:
        """The point of the curves after `step` steps. All ranks must call this.

        `check_finite` is called if the loss is not finite. `is_last`: the point covers the steps since the
        last regular one; the sums are then kept, so that a run that is made longer continues with them.
        """
        sums: Tensor = self.accelerator.reduce(self.running.sums.clone(), "sum")
        loss, accuracy = (sums / (self.running.steps * self.batch_size)).tolist()
        if not math.isfinite(loss):
            check_finite()
        if not is_last:
            self.running.clear()
        return {"loss": loss, "accuracy": accuracy, "lr": lr, **self._speed(step)}

    def state_dict(self) -> dict[str, Any]:
        """The sums over all ranks, and the training time. All ranks must call this."""
        return {
            "window": self.accelerator.reduce(self.running.sums.clone(), "sum"),
            "window_steps": self.running.steps,
            "train_seconds": self.timer.seconds,
        }

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """Resume from a `state_dict`; `steps`: used if an older version did not save `window_steps`."""
        if self.accelerator.is_main_process:  # the saved sums are those of all ranks
            self.running.sums.copy_(state["window"])
        saved = state.get("window_steps")
        self.running.steps = saved if saved is not None else steps
        self.timer.seconds = state["train_seconds"]

    def _speed(self, step: int) -> dict[str, float]:
        values = {"memory_gb": memory_gigabytes(self.accelerator.device)}
        seconds, waited, timed = self.timer.since(step - 1)  # the timer is at the start of this step
        if timed <= 0 or seconds <= 0:
            return values
        rate = timed * self.batch_size / seconds
        values |= {"images_per_second": rate, "data_wait": waited / seconds}
        if self.flops is not None:
            values["tflops"] = rate * self.flops / 1e12 / self.accelerator.num_processes
            if self.peak is not None:
                values["mfu"] = values["tflops"] / self.peak
        return values
