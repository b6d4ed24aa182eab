"""The optional package of native ops; without it the program works the same, but slower."""

import os
from functools import cache
from types import ModuleType

import torch


@cache
def load_native_ops() -> tuple[ModuleType | None, str]:
    """The package `neuscale_ops`, or None and the reason as text. `NEUSCALE_OPS=off` disables it."""
    if os.environ.get("NEUSCALE_OPS", "").lower() in ("off", "0"):
        return None, "NEUSCALE_OPS=off"
    try:
        import neuscale_ops
    except ModuleNotFoundError as error:
        if error.name != "neuscale_ops":
            return None, str(error)
        return None, "neuscale_ops is not installed (make ops)"
    except ImportError as error:  # an incompatible build; its message says what to do
        return None, str(error)
    return neuscale_ops, ""


def native_ops(device: torch.device) -> tuple[ModuleType | None, str]:
    """The package if it has kernels for `device`, else None and the reason as text."""
    ops, reason = load_native_ops()
    if ops is None:
        return None, reason
    if device.type == "cpu" or (device.type == "cuda" and ops.build_info()["cuda"] is not None):
        return ops, ""
    return None, f"neuscale_ops has no kernels for {device.type}"
