"""GPUs on which nothing runs."""

import os


def free_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES is to say for each GPU that this process may use and no other one does.

    Empty where there is no NVIDIA driver.
    """
    return [gpu for gpu, busy in _gpus() if not busy]


def gpu_count() -> int:
    """The GPUs that this process may use, busy or not."""
    return len(_gpus())


def _gpus() -> list[tuple[str, bool]]:
    """The UUIDs of the visible GPUs, each with whether a process computes on it."""
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
