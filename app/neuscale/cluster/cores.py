"""How many cores this process may use: by affinity, the cgroup's quota and Slurm, not by the machine."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Whole cores, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _quota(cgroup)
    limits = [cores, math.ceil(quota) if quota is not None else cores, _allocated() or cores]
    return max(1, min(limits))


def _allocated() -> int | None:
    """What Slurm gave to this task: not every cluster holds its tasks to that by affinity or a cgroup."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if (value := os.environ.get(name, "")).isdecimal():
            return int(value)
    return None


def _quota(cgroup: Path) -> float | None:
    """Cores that the cgroup (version 2, else 1) allows; None where it sets no limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
        period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return None if int(limit) <= 0 else int(limit) / int(period)
    except (OSError, ValueError):
        return None
