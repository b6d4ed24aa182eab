"""The wall-clock limit of a run."""

import re
import time

from neuscale.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BEGAN = time.monotonic()  # of this process, near enough

# Kept back for the last steps and for saving, but never more than a tenth of the limit.
_MARGIN = 60.0


def limit_seconds(text: str, name: str = "run.time_limit=") -> float:
    """Seconds of a limit like "45s", "90m", "8h", "7:45:00" or "2-00:00:00" (as Slurm has it).

    UsageError, beginning with `name` and the text, for anything else.
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        seconds = float(found[1]) * _UNITS[found[2]]
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60.0 + rest
    else:
        raise UsageError(f"{name}{text}: expected a time like 90m, 8h or 7:45:00.")
    if seconds <= 0:
        raise UsageError(f"{name}{text}: expected more than no time at all.")
    return seconds


class Deadline:
    """When to stop so that everything is saved within the limit; never, without one."""

    def __init__(self, text: str | None) -> None:
        self._ends: float | None = None
        if text is not None:
            seconds = limit_seconds(text)
            self._ends = _BEGAN + seconds - min(_MARGIN, seconds / 10)

    def passed(self, save_seconds: float) -> bool:
        """Whether it is time; `save_seconds`: what the slowest save has taken so far."""
        return self._ends is not None and time.monotonic() + 2 * save_seconds >= self._ends
