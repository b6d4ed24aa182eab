"""Floating-point operations of training, and the peak rate of the device."""

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense peak of bf16 and fp16 tensor cores in TFLOP/s, from the makers' data sheets; the tf32 rate is half.
_PEAKS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
}


def training_flops(model: nn.Module, channels: int, size: int) -> float | None:
    """Floating-point operations to train on one image: the forward pass, and twice that for backward.

    Counted on an eager copy on the meta device; frozen parts count like any other. None for a
    model that does not run there.
    """
    shape = copy.deepcopy(model).to("meta").eval()
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            shape(torch.empty(1, channels, size, size, device="meta"))
    except Exception:  # models of other libraries may raise any error on meta tensors
        return None
    return 3.0 * counter.get_total_flops()


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Peak of the device in TFLOP/s for a precision; None if it is not known."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    for part, peak in _PEAKS.items():
        if part in name:
            return peak / 2 if precision == "tf32" else peak
    return None
