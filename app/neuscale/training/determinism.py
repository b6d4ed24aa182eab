"""Determinism: torch's settings, and the seeds of its generators."""

import os
from typing import Any

import torch


def determinism() -> dict[str, Any]:
    """The settings of torch and CUDA that decide whether equal inputs give bitwise equal results."""
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


def be_deterministic() -> None:
    """Allow only deterministic algorithms; call this before anything is computed on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed only the device's generator: torch.manual_seed seeds all kinds of devices, which takes longer."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
