"""Fake kernels of the ops (shapes and dtypes only), for torch.compile, torch.export and fake tensors."""

import torch
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor, approximate: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def bias_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, approximate: int
) -> tuple[Tensor, Tensor]:
    dbias = x.new_empty(x.shape[-1], dtype=x.dtype if bias is None else bias.dtype)
    return torch.empty_like(x, memory_format=torch.contiguous_format), dbias


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape)


def linear_gelu_backward(grad: Tensor, weight: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    return grad.new_empty(pre.shape), grad.new_empty(pre.shape[1:])


def crop_flip_normalize(
    images: Tensor, index: Tensor, top: Tensor, left: Tensor, flip: Tensor, table: Tensor, padding: int
) -> Tensor:
    return images.new_empty((index.shape[0], *images.shape[1:]), dtype=table.dtype)


def register() -> None:
    """Register all fake kernels with torch."""
    for fake in (bias_gelu, bias_gelu_backward, linear_gelu, linear_gelu_backward, crop_flip_normalize):
        torch.library.register_fake(f"neuscale_ops::{fake.__name__}", fake)
