"""Stop between two steps: on a signal or at the time limit, at the same step on all ranks."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist

from neuscale.distributed.signals import accept_save_signal, hold_save_signal
from neuscale.units import limit_seconds

_BEGAN = time.monotonic()  # approximate start of this process


# Seconds reserved for the last steps and for saving, but never more than a tenth of the limit.
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


# Agreeing with the other ranks costs a small all-reduce and, on a GPU, a synchronisation.
AGREE_EVERY_STEPS = 10

# A second signal within this many seconds is the same request: make and process groups send it twice.
_SAME_REQUEST = 2.0

# Two Ctrl-C by hand are more than this many seconds apart; two copies of one are not.
_BY_HAND = 0.2

T = TypeVar("T")


class Stopped(Exception):
    """All ranks have agreed to stop."""


class StopRequest:
    """Context in which SIGTERM, SIGINT, SIGHUP and SIGUSR2 request a stop, and so does the `deadline`.

    Unless a launcher started this process, a further signal (not SIGUSR2) more than two seconds after the
    first ends it at once, and so does a second Ctrl-C. `signal`: the signal or limit that requested the stop.
    A signal that this process was started to ignore stays ignored: SIGHUP under nohup, SIGINT in a script's
    background job. Outside the main thread no signal can be handled, and only the deadline counts.
    """

    def __init__(self, device: torch.device, deadline: Deadline) -> None:
        self.device = device
        self.deadline = deadline
        self.signal: str | None = None
        self._asked = 0.0  # time of the request
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
        hold_save_signal()  # nothing is left to save
        # A signal that a launcher repeats must not end a process that has just saved.
        ignored = self.signal is not None and _launched()
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ignored else handler)  # type: ignore[arg-type]

    @property
    def words(self) -> str:
        """The signal or limit that requested the stop."""
        return self.signal or "a signal to another process"

    def watched(self, batches: Iterable[T], common: int) -> Iterator[T]:
        """Yield the batches; raise Stopped once all ranks have agreed to stop.

        They agree after each of the first `common` batches, which every rank has.
        """
        for number, batch in enumerate(batches, start=1):
            yield batch
            if number <= common and self.agreed(0):
                raise Stopped

    def agreed(self, step: int, save_seconds: float = 0.0) -> bool:
        """True if all ranks stop after `step`; every rank must call this at the same steps.

        `save_seconds`: duration of a save, for which the deadline must leave time.
        """
        if self.signal is None and self.deadline.passed(save_seconds):
            self.signal = "run.time_limit"
        if not dist.is_initialized():
            return self.signal is not None
        if self.device.type != "cpu" and step % AGREE_EVERY_STEPS:
            return False
        flag = torch.tensor([float(self.signal is not None)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        name, since = signal.Signals(number).name, time.monotonic() - self._asked
        asked_before = self.signal not in (None, "SIGUSR2")  # a scheduler sends SIGTERM after SIGUSR2
        is_repeated = name == self.signal == "SIGINT" and since > _BY_HAND
        if asked_before and name != "SIGUSR2" and not _launched() and (is_repeated or since > _SAME_REQUEST):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if not asked_before:
            self.signal, self._asked = name, time.monotonic()


def _launched() -> bool:
    # A launcher's children get a Ctrl-C twice: from the terminal and from the launcher.
    return "TORCHELASTIC_RUN_ID" in os.environ
