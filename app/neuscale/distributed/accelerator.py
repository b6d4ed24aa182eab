"""The Accelerator of a run, with its device and precision; no other module imports Accelerate.

`accelerate launch` and its configuration file pass their settings in environment variables
(accelerate/utils/launch.py), and Accelerate reads some of them even if no launcher set them.
Each one is either supported here or rejected by name, so that none changes a run without a
trace in its configuration.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from neuscale.distributed.rendezvous import join_process_group
from neuscale.distributed.worker_errors import REPORTS
from neuscale.errors import UsageError

__all__ = [
    "Accelerator",
]


def create_accelerator(device: str, precision: str) -> Accelerator:
    """Create an Accelerator for `run.device` and `train.precision`; ranks come from the environment.

    Raises UsageError for a missing device, a precision that it does not support, and unsupported
    settings of `accelerate launch`.
    """
    check_accelerate_environment()
    device = asked_device(device)
    check_device(device)
    kind = resolve_device(device)
    resolved = resolve_precision(precision, kind)
    torch.set_float32_matmul_precision("high" if resolved == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = resolved == "tf32"
    # torch 2.15 renames the option below; Accelerate and older versions know only the old name.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated", category=FutureWarning)
    if REPORTS in os.environ:  # Accelerate uses an existing process group
        join_process_group("nccl" if kind == "cuda" else "gloo")
    AcceleratorState._reset_state()  # a second run in one process may want another precision
    return Accelerator(
        cpu=kind == "cpu",
        mixed_precision="no" if resolved in ("fp32", "tf32") else resolved,
        step_scheduler_with_optimizer=False,
        # Buffers are constant, or BatchNorm's, which are broadcast before evaluation: evaluation/evaluate.py.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        ],
    )


def check_device(device: str) -> None:
    """Raise UsageError for a device that is not available."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "run.device=cuda: there is no usable NVIDIA GPU here.", "'neuscale doctor' says why."
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("run.device=mps: there is no Apple GPU here.", "Remove run.device.")


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
        raise UsageError("train.precision=tf32 needs an NVIDIA GPU.", "Remove train.precision.")
    if precision == "fp16" and kind == "cpu":
        raise UsageError(f"{named} needs a GPU.", "On a CPU use bf16 or fp32.")
    return precision


def device_name(accelerator: Accelerator) -> str:
    """Description of the device."""
    device: torch.device = accelerator.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else "Apple GPU"


PRECISION, CPU = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"


_YES = ("1", "true", "yes", "y", "on", "t")


@dataclass(frozen=True)
class _Refused:
    """A variable that must be unset or one of `harmless`; `setting`: its name in a configuration file."""

    setting: str
    fix: str
    harmless: tuple[str, ...] = ("", "0", "false", "no", "n", "off", "f", "none")


_OWN_SPLIT = "A model is whole on each GPU here: take MULTI_GPU in 'accelerate config'."


_REFUSED = {
    "ACCELERATE_USE_FSDP": _Refused("FSDP", _OWN_SPLIT),
    "ACCELERATE_USE_DEEPSPEED": _Refused("DeepSpeed", _OWN_SPLIT),
    "ACCELERATE_USE_MEGATRON_LM": _Refused("Megatron-LM", _OWN_SPLIT),
    "ACCELERATE_USE_PARALLELISM_CONFIG": _Refused("parallelism_config", _OWN_SPLIT),
    "ACCELERATE_USE_SAGEMAKER": _Refused("SageMaker", "Start 'neuscale train --gpus N' on the machine."),
    "ACCELERATE_IN_TPU_POD": _Refused("a TPU", "It trains on NVIDIA and Apple GPUs, and on CPUs."),
    "ACCELERATE_DOWNCAST_BF16": _Refused("downcast_bf16", "It is for TPUs: remove it."),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": _Refused(
        "gradient_accumulation_steps",
        "Remove it: train.global_batch_size is the batch of a step, in however many parts.",
        ("", "1", "none", "auto"),
    ),
    "ACCELERATE_GRADIENT_CLIPPING": _Refused(
        "gradient_clipping", "Remove it and set optim.clip_grad_norm.", ("", "none", "auto")
    ),
    "ACCELERATE_DYNAMO_BACKEND": _Refused(
        "dynamo_backend", "Set it to no; train.compile=true does it.", ("", "no")
    ),
    "ACCELERATE_TORCH_DEVICE": _Refused("ACCELERATE_TORCH_DEVICE", "Unset it and use run.device.", ("",)),
}


# Variables that mpirun sets for its processes.
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_accelerate_environment() -> None:
    """Raise UsageError for the first setting of Accelerate that is not supported."""
    for variable, refused in _REFUSED.items():
        value = os.environ.get(variable, "")
        if value.lower() not in refused.harmless:
            raise UsageError(
                f"accelerate asks for {refused.setting} ({variable}={value}), which is not supported.",
                refused.fix,
            )
    started = any(name in os.environ for name in ("WORLD_SIZE", *_MPI_SIZES))
    if asks_for_cpu() and "MASTER_PORT" in os.environ and not started:
        raise UsageError(
            "accelerate asks for several processes on the CPU, and started one (several want MPI).",
            "Start them with: neuscale train --processes N",
        )


def asks_for_cpu() -> bool:
    """True if `accelerate launch` was told to use the CPU."""
    return os.environ.get(CPU, "").lower() in _YES


def asked_device(device: str) -> str:
    """`run.device`, or "cpu" if it is auto and Accelerate asks for it. Raises UsageError on a conflict."""
    if not asks_for_cpu() or device == "cpu":
        return device
    if device == "auto":
        return "cpu"
    raise UsageError(
        f"run.device={device} and accelerate's use_cpu ({CPU}={os.environ[CPU]}) contradict each other.",
        "Use only one of the two.",
    )


def asked_precision(precision: str) -> str:
    """`train.precision`, or Accelerate's setting if it is auto. Raises UsageError on a conflict.

    Accelerate sets "no" also by default: for auto that means fp32, and it conflicts with nothing.
    """
    asked = os.environ.get(PRECISION, "").lower()
    if asked in ("", "no"):
        return "fp32" if asked == "no" and precision == "auto" else precision
    if asked not in ("fp16", "bf16"):
        raise UsageError(
            f"accelerate asks for mixed_precision {asked} ({PRECISION}={asked}), which is not supported.",
            "Take bf16, fp16 or no.",
        )
    if precision not in ("auto", asked):
        raise UsageError(
            f"train.precision={precision} and accelerate's mixed_precision ({PRECISION}={asked})"
            " contradict each other.",
            "Use only one of the two.",
        )
    return asked


def create_tracker(name: str, project: str, options: dict[str, Any]) -> Any:
    """Create Accelerate's tracker `name`, not started; `options` are arguments of its class."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return LOGGER_TYPE_TO_CLASS[name](project, **options)
