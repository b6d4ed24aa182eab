"""How much memory a device has for this process."""

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def device_memory(device: torch.device) -> int:
    """Bytes: what is free on a GPU, all that the machine or the cgroup gives on a CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return host_memory()


def host_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes of memory of this machine, or what the cgroup (version 2, else 1) allows of them."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(total, int((cgroup / file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return total
