"""Format counts, bytes and durations as text, and parse durations."""

import re
from datetime import UTC, datetime

from neuscale.errors import UsageError


def quantity(count: float, unit: str) -> str:
    """A count with its unit as text; bytes are scaled to kB, MB or GB."""
    if unit != "B":
        return f"{count:,.0f} {unit}"
    for scaled in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {scaled}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds as text, in hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def limit_seconds(text: str, name: str = "run.time_limit=") -> float:
    """Seconds of a time limit such as "45s", "90m", "8h", "7:45:00" or "2-00:00:00" (Slurm's form).

    Raises UsageError, with a message that begins with `name` and the text, for anything else.
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        seconds = float(found[1]) * _UNITS[found[2]]
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60.0 + rest
    else:
        raise UsageError(f"{name}{text}: expected a time like 90m, 8h or 7:45:00.")
    if seconds <= 0:
        raise UsageError(f"{name}{text}: must be positive.")
    return seconds


def now() -> str:
    """Current UTC time in ISO 8601 format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
