"""Stopping between two steps: on a signal or at the time limit, on all processes at the same step."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from neuscale.distributed.signals import accept_save_signal, hold_save_signal
from neuscale.units import limit_seconds

_BEGAN = time.monotonic()  # of this process, near enough


# Kept back for the last steps and for saving, but never more than a tenth of the limit.
_MARGIN = 60.0


class Deadline:
    """Time at which to stop so that everything is saved within the limit."""

    def __init__(self, text: str | None) -> None:
        self._ends: float | None = None
        if text is not None:
            seconds = limit_seconds(text)
            self._ends = _BEGAN + seconds - min(_MARGIN, seconds / 10)

    def passed(self, save_seconds: float) -> bool:
        """True once it is time to stop; `save_seconds`: duration of the slowest save so far."""
        return self._ends is not None and time.monotonic() + 2 * save_seconds >= self._ends


SIGNALS = [
    number
    for name in ("SIGTERM", "SIGINT", "SIGUSR2", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
]


# Asking the other processes costs a small all-reduce, so it is not done at every step.
AGREE_EVERY_STEPS = 10


class StopRequest:
    """Within this context SIGTERM, SIGINT, SIGHUP and SIGUSR2 ask for a stop, and so does the `deadline`.

    A second SIGINT or SIGTERM stops at once. `signal`: what asked for the stop. A signal that this process
    was started to ignore stays ignored: SIGHUP under nohup, SIGINT in the background of a script. In a
    thread other than the main one no signal can be handled, and only the deadline counts.
    """

    def __init__(self, device: torch.device, deadline: Deadline) -> None:
        self.device = device
        self.deadline = deadline
        self.signal: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        accept_save_signal()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hold_save_signal()  # there is nothing left to save
        # What a launcher sends once more must not end a process that has just saved.
        ignored = self.signal is not None and _launched()
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ignored else handler)  # type: ignore[arg-type]

    def agreed(self, step: int, save_seconds: float = 0.0) -> bool:
        """True if all processes stop after `step`; every process must ask at the same steps.

        `save_seconds`: what saving takes, which the deadline must leave time for.
        """
        if self.signal is None and self.deadline.passed(save_seconds):
            self.signal = "run.time_limit"
        if not dist.is_initialized():
            return self.signal is not None
        if step % AGREE_EVERY_STEPS:
            return False
        flag = torch.tensor([float(self.signal is not None)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        asked_before = self.signal not in (None, "SIGUSR2")  # after which a scheduler sends SIGTERM as well
        if asked_before and number != getattr(signal, "SIGUSR2", None) and not _launched():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = signal.Signals(number).name


def _launched() -> bool:
    # A launcher's children get a Ctrl-C twice: from the terminal and from the launcher.
    return "TORCHELASTIC_RUN_ID" in os.environ
