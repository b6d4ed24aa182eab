"""Counts, bytes and times as people read them."""


def quantity(count: float, unit: str) -> str:
    """A count with its unit; bytes are scaled."""
    if unit != "B":
        return f"{count:,.0f} {unit}"
    for scaled in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {scaled}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that fit."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
