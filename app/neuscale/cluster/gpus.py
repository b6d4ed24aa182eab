"""The GPUs that can be used here, and their driver."""

from typing import Any


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
    """The NVIDIA driver's version; None without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # no library, no driver, no permission: all the same here
        return None
