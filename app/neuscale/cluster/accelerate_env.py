"""What `accelerate launch` and its config file ask for: honoured, or refused by name.

Accelerate hands it to the processes in environment variables (accelerate/utils/launch.py) and
reads some of them where nobody asked: a setting that is neither honoured nor refused here
would change a run without a word in its configuration.
"""

import os
from dataclasses import dataclass

from neuscale.errors import UsageError

PRECISION, CPU = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"
_YES = ("1", "true", "yes", "y", "on", "t")


@dataclass(frozen=True)
class _Refused:
    """A variable that must be absent or hold one of `harmless`; `setting`: its name in a config file."""

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
    "ACCELERATE_DOWNCAST_BF16": _Refused("downcast_bf16", "It is for TPUs: leave it away."),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": _Refused(
        "gradient_accumulation_steps",
        "Leave it away: train.global_batch_size is the batch of a step, in however many parts.",
        ("", "1", "none", "auto"),
    ),
    "ACCELERATE_GRADIENT_CLIPPING": _Refused(
        "gradient_clipping", "Leave it away and set optim.clip_grad_norm.", ("", "none", "auto")
    ),
    "ACCELERATE_DYNAMO_BACKEND": _Refused(
        "dynamo_backend", "Set it to no; train.compile=true does it.", ("", "no")
    ),
    "ACCELERATE_TORCH_DEVICE": _Refused("ACCELERATE_TORCH_DEVICE", "Unset it and use run.device.", ("",)),
}
# What mpirun leaves to each process that it starts.
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def check_accelerate_environment() -> None:
    """Raises UsageError for the first setting of Accelerate that is not supported."""
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
    """Whether `accelerate launch` was told to use the CPU."""
    return os.environ.get(CPU, "").lower() in _YES


def asked_device(device: str) -> str:
    """`run.device`, or cpu where that is auto and Accelerate says so. UsageError for a contradiction."""
    if not asks_for_cpu() or device == "cpu":
        return device
    if device == "auto":
        return "cpu"
    raise UsageError(
        f"run.device={device} and accelerate's use_cpu ({CPU}={os.environ[CPU]}) contradict each other.",
        "Leave one of them away.",
    )


def asked_precision(precision: str) -> str:
    """`train.precision`, or where that is auto what Accelerate says. UsageError for a contradiction.

    Accelerate says "no" also where nobody was asked: that is fp32 for auto, and contradicts nothing.
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
            "Leave one of them away.",
        )
    return asked
