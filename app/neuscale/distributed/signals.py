"""Signals that stop a run or ask it to save.

A batch script sends SIGUSR2 to make a run save and exit. The signal stays blocked until its handler
is installed; a pending one is then delivered, also in processes that inherited the mask.
"""

import ctypes
import signal
import sys
from collections.abc import Callable

SAVE_SIGNAL: int | None = getattr(signal, "SIGUSR2", None)


def hold_save_signal() -> None:
    """Block the save signal, so that it stays pending."""
    if SAVE_SIGNAL is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {SAVE_SIGNAL})


def accept_save_signal() -> None:
    """Unblock the save signal once its handler is installed; a pending one is delivered now."""
    if SAVE_SIGNAL is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {SAVE_SIGNAL})


_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# For subprocess's preexec_fn: the kernel sends the child SIGTERM when its parent dies. None except on Linux.
END_WITH_PARENT: Callable[[], None] | None = _end_with_parent if sys.platform == "linux" else None


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
