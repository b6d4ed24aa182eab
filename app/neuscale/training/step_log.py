"""A point of the curves: how well the last steps did, and how fast they were."""

import math
from collections.abc import Callable

from accelerate import Accelerator
from torch import Tensor

from neuscale.training.meters import Clock, Window, memory_gigabytes


class StepLog:
    """Gathers what is known of the steps between two points of the curves.

    `flops`: floating-point operations of training on one image, None where they cannot be
    counted; `peak`: TFLOP/s of one device, None where it is not known.
    """

    def __init__(self, accelerator: Accelerator, batch_size: int, flops: float | None, peak: float | None):
        self.accelerator, self.batch_size, self.flops, self.peak = accelerator, batch_size, flops, peak
        self.window = Window(accelerator.device)
        self.clock = Clock()

    def values(self, step: int, lr: float, check_finite: Callable[[], None]) -> dict[str, float]:
        """The point after `step` steps, over those since the point before; all processes call this.

        `check_finite` is called where the loss is no number.
        """
        sums: Tensor = self.accelerator.reduce(self.window.sums.clone(), "sum")
        loss, accuracy = (sums / (self.window.steps * self.batch_size)).tolist()
        if not math.isfinite(loss):
            check_finite()
        self.window.clear()
        return {"loss": loss, "accuracy": accuracy, "lr": lr, **self._speed(step)}

    def _speed(self, step: int) -> dict[str, float]:
        values = {"memory_gb": memory_gigabytes(self.accelerator.device)}
        seconds, waited, timed = self.clock.since(step - 1)  # it stands at the beginning of this step
        if timed <= 0 or seconds <= 0:
            return values
        rate = timed * self.batch_size / seconds
        values |= {"images_per_second": rate, "data_wait": waited / seconds}
        if self.flops is not None:
            values["tflops"] = rate * self.flops / 1e12 / self.accelerator.num_processes
            if self.peak is not None:
                values["mfu"] = values["tflops"] / self.peak
        return values
