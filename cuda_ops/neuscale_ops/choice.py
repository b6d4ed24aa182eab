"""Choice of the faster implementation, by timing both once for each shape and device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "epilogue", "separate")
WARMUPS, TIMINGS = 3, 10

_chosen: dict[tuple[Any, ...], bool] = {}


def choose(
    name: str,
    implementation: str,
    tanh: bool,
    tensors: tuple[Tensor, ...],
    epilogue: Callable[..., Tensor],
    separate: Callable[..., Tensor],
) -> bool:
    """Return True to use the epilogue.

    Raises ValueError for an unknown implementation, and for an epilogue that does not support the tensors.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}")
    if implementation == "separate":
        return False
    fits = tanh and epilogue_fits(tensors)
    if implementation == "epilogue":
        if not fits:
            raise ValueError(
                "implementation: the epilogue is for the tanh form on CUDA, with float16 or bfloat16"
                " throughout and dimensions that are multiples of 8"
            )
        return True
    if not fits or torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return False
    x = tensors[0]
    training = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    shapes = (x.numel() // x.shape[-1], *(t.shape for t in tensors[1:]))
    key = (name, x.device, x.dtype, training, shapes)
    if key not in _chosen:
        _chosen[key] = _faster(tensors, epilogue, separate, training)
    return _chosen[key]


def choices() -> list[dict[str, Any]]:
    """Choices made so far, for reports."""
    return [
        {"op": name, "device": str(device), "dtype": str(dtype), "training": training, "shapes": str(shapes),
         "implementation": "epilogue" if chosen else "separate"}
        for (name, device, dtype, training, shapes), chosen in _chosen.items()
    ]  # fmt: skip


def epilogue_fits(tensors: tuple[Tensor, ...]) -> bool:
    """Return True if cuBLASLt's GELU epilogue supports the tensors: x, then weights and biases in turn."""
    x = tensors[0]
    if x.device.type != "cuda" or x.dtype not in (torch.float16, torch.bfloat16) or x.numel() == 0:
        return False
    if not torch._C._dispatch_has_kernel_for_dispatch_key("neuscale_ops::linear_gelu", "CUDA"):
        return False
    return all(t.dtype == x.dtype and t.shape[-1] % 8 == 0 and t.shape[0] % 8 == 0 for t in tensors[1:])


def _faster(
    tensors: tuple[Tensor, ...],
    epilogue: Callable[..., Tensor],
    separate: Callable[..., Tensor],
    training: bool,
) -> bool:
    try:
        with_epilogue = _milliseconds(epilogue, tensors, training)
    except RuntimeError:  # cuBLASLt has no algorithm for this shape on this GPU
        return False
    return with_epilogue < _milliseconds(separate, tensors, training)


def _milliseconds(function: Callable[..., Tensor], tensors: tuple[Tensor, ...], training: bool) -> float:
    """Median time of a forward pass, in training of forward and backward, over TIMINGS calls."""
    device = tensors[0].device
    copies = [t.detach().requires_grad_(training) for t in tensors]
    times = []
    with torch.cuda.device(device), torch.set_grad_enabled(training), torch.autocast("cuda", enabled=False):
        for _ in range(WARMUPS + TIMINGS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            y = function(*copies)
            if training:
                torch.autograd.grad(y, copies, torch.ones_like(y))
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return sorted(times[WARMUPS:])[TIMINGS // 2]
