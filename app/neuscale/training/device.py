"""Where a run computes and in which arithmetic: the one place that sets up Accelerate."""

import os
import shutil
import warnings

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from neuscale.cluster.accelerate_env import asked_device, asked_precision, check_accelerate_environment
from neuscale.data.loader import Share
from neuscale.errors import UsageError
from neuscale.training.host_memory import keep_freed_memory


def create_accelerator(device: str, precision: str) -> Accelerator:
    """An Accelerator for `run.device` and `train.precision`; processes come from the environment.

    Raises UsageError for a device that is not there, a precision that it does not have, and
    what `accelerate launch` may ask for that is not supported.
    """
    check_accelerate_environment()
    device = asked_device(device)
    check_device(device)
    kind = resolve_device(device)
    resolved = resolve_precision(precision, kind)
    if kind == "cpu":
        keep_freed_memory()
    torch.set_float32_matmul_precision("high" if resolved == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = resolved == "tf32"
    # torch 2.15 renames the option below; Accelerate and older versions know the old name only.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated", category=FutureWarning)
    AcceleratorState._reset_state()  # a second run in one process may want another precision
    return Accelerator(
        cpu=kind == "cpu",
        mixed_precision="no" if resolved in ("fp32", "tf32") else resolved,
        step_scheduler_with_optimizer=False,
        # Buffers are constants, or BatchNorm's, which are shared where they are read: training/norm.py.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        ],
    )


def check_device(device: str) -> None:
    """UsageError for a device that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "run.device=cuda: there is no usable NVIDIA GPU here.", "'neuscale doctor' says why."
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("run.device=mps: there is no Apple GPU here.", "Leave run.device away.")


def be_deterministic() -> None:
    """Only algorithms that give the same bits each time; before anything is computed on a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def check_compiler() -> None:
    """UsageError where torch.compile would find no C++ compiler."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise UsageError(
            "torch.compile needs a C++ compiler, and there is none on PATH.",
            "Install one (Debian and Ubuntu: apt-get install g++), or leave it away.",
        )


def resolve_device(device: str) -> str:
    """cuda, mps or cpu for `run.device`."""
    device = asked_device(device)
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(precision: str, kind: str) -> str:
    """fp32, tf32, bf16 or fp16 for `train.precision` on a kind of device. Raises UsageError."""
    named = f"train.precision={precision}" if precision != "auto" else "accelerate's mixed_precision fp16"
    precision = asked_precision(precision)
    if precision == "auto":
        if kind != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "tf32" and kind != "cuda":
        raise UsageError("train.precision=tf32 needs an NVIDIA GPU.", "Leave train.precision away.")
    if precision == "fp16" and kind == "cpu":
        raise UsageError(f"{named} needs a GPU.", "On a CPU use bf16 or fp32.")
    return precision


def seed_generator(device: torch.device, seed: int) -> None:
    """Seeds the device's generator. torch.manual_seed visits those of all kinds of devices, at a cost."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def share_of(accelerator: Accelerator) -> Share:
    """This process's rank among all."""
    return Share(accelerator.process_index, accelerator.num_processes)


def device_name(accelerator: Accelerator) -> str:
    """The device in words."""
    device: torch.device = accelerator.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else "Apple GPU"
