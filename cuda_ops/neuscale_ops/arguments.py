"""Argument checks: TypeError for a wrong type, dtype or layout, ValueError for a wrong value."""

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
APPROXIMATE = {"none": 0, "tanh": 1}


def approximate_code(approximate: Any) -> int:
    """Integer that the ops take for "none" (the exact form, with erf) or "tanh"; else ValueError."""
    try:
        return APPROXIMATE[approximate]
    except (KeyError, TypeError):
        raise ValueError(f"approximate: 'none' or 'tanh', not {approximate!r}") from None


def check_float(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a dense tensor of float32, float16 or bfloat16."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: a tensor, not {type(value).__name__}")
    if value.is_nested or value.layout is not torch.strided:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise TypeError(f"{name}: a dense tensor, not a {kind} one; make it dense first")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: float32, float16 or bfloat16, not {value.dtype}")


def check_bias(x: Tensor, bias: Tensor) -> None:
    """Raise an error unless `x` and `bias` are float tensors on one device and `bias` is [x.shape[-1]]."""
    check_float("x", x)
    check_float("bias", bias)
    if x.dim() == 0:
        raise ValueError("x: one dimension or more, not a scalar")
    if bias.dim() != 1 or bias.shape[0] != x.shape[-1]:
        raise ValueError(f"bias: shape [{x.shape[-1]}], the last dimension of x, not {list(bias.shape)}")
    check_device(bias, "bias", x, "x")


def check_device(value: Tensor, name: str, other: Tensor, other_name: str) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name}: on {value.device}, but {other_name} is on {other.device}")
