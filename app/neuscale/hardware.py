"""Cores, memory and GPUs available to this process, within the limits of affinity, cgroup and Slurm.

torch is imported inside functions, so that commands that only count cores start quickly.
"""

import ctypes
import math
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuscale.errors import UsageError

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Number of CPU cores that this process may use, rounded up, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _quota(cgroup)
    limits = [cores, math.ceil(quota) if quota is not None else cores, _allocated() or cores]
    return max(1, min(limits))


def _allocated() -> int | None:
    """Cores that Slurm allocated to this task; not every cluster enforces this by affinity or a cgroup."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if (value := os.environ.get(name, "")).isdecimal():
            return int(value)
    return None


def _quota(cgroup: Path) -> float | None:
    """Cores that the cgroup (version 2, else 1) allows; None if it sets no limit."""
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


def device_memory(device: "torch.device") -> int:
    """Memory in bytes: free memory of a CUDA GPU, recommended maximum on MPS, else `host_memory()`."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return host_memory()


def host_memory(cgroup: Path = _CGROUP) -> int:
    """Memory of this machine in bytes, or the limit of the cgroup (version 2, else 1) if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, int((cgroup / file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return total


def gpu_list() -> list[dict[str, Any]]:
    """Name, memory in GB and compute capability of each GPU that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        {"name": p.name, "memory_gb": round(p.total_memory / 1e9, 1), "capability": f"{p.major}.{p.minor}"}
        for p in found
    ]


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # no library, no driver or no permission
        return None


def free_gpus() -> list[str]:
    """UUIDs, usable in CUDA_VISIBLE_DEVICES, of the visible GPUs on which no process computes.

    Empty without an NVIDIA driver.
    """
    return [gpu for gpu, busy in _gpus() if not busy]


def gpu_count() -> int:
    """Number of GPUs that this process may use, busy or not."""
    return len(_gpus())


def _gpus() -> list[tuple[str, bool]]:
    """Pairs of the UUID of a visible GPU and True if a process computes on it."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = [
            (str(pynvml.nvmlDeviceGetUUID(handle)), bool(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)))
            for handle in handles
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    named = [name.strip() for name in visible.split(",")]
    wanted = [found[int(n)][0] if n.isdigit() and int(n) < len(found) else n for n in named]
    return [gpu for gpu in found if any(name and gpu[0].startswith(name) for name in wanted)]


# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_GROW_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory in this process for the next step; return True on success.

    By default glibc returns large freed blocks to the system, and a training step, which needs
    memory for the same activations again, spends a fifth of its time on mapping zeroed pages.
    Peak memory stays the same, but the process holds it until it ends. If the user has set
    `MALLOC_…` or `GLIBC_TUNABLES`, nothing is changed.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _GROW_BYTES))
    )


def check_compiler() -> None:
    """Raise UsageError if torch.compile would find no C++ compiler."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise UsageError(
            "torch.compile needs a C++ compiler, and there is none on PATH.",
            "Install one (Debian and Ubuntu: apt-get install g++), or remove the setting.",
        )


def cpu_name() -> str:
    """Name of the processor, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def check_gpus(wanted: int) -> None:
    """Raise UsageError if there are fewer than `wanted` usable GPUs."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < wanted:
        found = "there is none" if there == 0 else f"there {'is' if there == 1 else 'are'} {there}"
        raise UsageError(
            f"{wanted} GPU{'s' if wanted > 1 else ''} asked for, and {found} that can be used here.",
            "Ask for fewer (0 is the CPU); 'neuscale doctor' says what it finds.",
        )
