"""What becomes of processes whose launcher is killed: they save and end; nobody would use what they hold."""

import ctypes
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# For subprocess's preexec_fn: the kernel sends the child SIGTERM when its parent dies. None where it cannot.
END_WITH_PARENT: Callable[[], None] | None = _end_with_parent if sys.platform == "linux" else None
