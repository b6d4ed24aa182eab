"""Autograd and torch.func rules of the ops themselves, for graphs that call them directly.

The Python functions of this package choose between the kernel and torch's own operations; a graph traced
by torch (torch.export, make_fx) contains the bare ops.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuscale_ops.plain import (
    is_transformed,
    plain_bias_gelu,
    plain_bias_gelu_backward,
    plain_linear_gelu,
    plain_linear_gelu_backward,
)

below_autograd = torch._C._AutoDispatchBelowAutograd

_PLAIN: dict[str, Callable[..., Any]] = {
    "bias_gelu_backward": plain_bias_gelu_backward,
    "linear_gelu": plain_linear_gelu,
    "linear_gelu_backward": plain_linear_gelu_backward,
}

_libraries: list[Any] = []  # registrations last only as long as their Library object


def register(bias_gelu: type[torch.autograd.Function]) -> None:
    """Register autograd kernels and vmap rules of the ops; `bias_gelu` is the Function of that op."""
    make: Any = torch.library.Library
    library = make("neuscale_ops", "IMPL")
    _libraries.append(library)
    functions: dict[str, tuple[Any, Callable[..., Any]]] = {"bias_gelu": (bias_gelu, plain_bias_gelu)}
    functions |= {name: (_function(name, plain), plain) for name, plain in _PLAIN.items()}
    for name, (function, plain) in functions.items():
        library.impl(name, _kernel(name, function, plain), "Autograd")
    torch.library.register_vmap("neuscale_ops::bias_gelu", _vmap_bias_gelu)
    torch.library.register_vmap("neuscale_ops::bias_gelu_backward", _vmap_bias_gelu_backward)


def _kernel(name: str, function: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    op = getattr(torch.ops.neuscale_ops, name).default

    def kernel(*inputs: Any) -> Any:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if is_transformed(*tensors):
            return plain(*inputs)
        if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
            return function.apply(*inputs)
        with below_autograd():
            return op(*inputs)

    return kernel


def _function(name: str, plain: Callable[..., Any]) -> type[torch.autograd.Function]:
    """Autograd Function with the op as forward, and the gradients of `plain`, recomputed, as backward."""
    op = getattr(torch.ops.neuscale_ops, name).default

    class ByTorch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
            ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]
            return op(*inputs)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            saved = iter(ctx.saved_tensors)
            inputs = [next(saved) if other is None else other[0] for other in ctx.others]
            return _product(plain, inputs, grads)

    ByTorch.__name__ = ByTorch.__qualname__ = f"{name}_by_torch"
    return ByTorch


def _product(
    plain: Callable[..., Any], inputs: list[Any], grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian product of `plain` at `inputs`, itself differentiable; None for a number."""

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        return plain(*(next(rest) if isinstance(value, Tensor) else value for value in inputs))

    vjp: Any = torch.func.vjp
    _, product = vjp(function, *(value for value in inputs if isinstance(value, Tensor)))
    found = iter(product(grads))
    return tuple(next(found) if isinstance(value, Tensor) else None for value in inputs)


def _in_front(value: Tensor, dim: int | None) -> Tensor:
    return value.unsqueeze(0) if dim is None else value.movedim(dim, 0)


def _batched_bias(x: Tensor, bias: Tensor | None, dim: int | None) -> Tensor | None:
    """Bias in a shape that broadcasts to `x` [B, …, C]."""
    if bias is None or dim is None:
        return bias
    bias = bias.movedim(dim, 0)
    return bias.view(bias.shape[0], *[1] * (x.dim() - 2), bias.shape[1])


def _vmap_bias_gelu(
    _info: Any, in_dims: tuple[int | None, ...], x: Tensor, bias: Tensor, approximate: int
) -> tuple[Tensor, int]:
    x = _in_front(x, in_dims[0])
    rows = _batched_bias(x, bias, in_dims[1])
    assert rows is not None
    return plain_bias_gelu(x, rows, approximate), 0


def _vmap_bias_gelu_backward(
    _info: Any,
    in_dims: tuple[int | None, ...],
    grad: Tensor,
    x: Tensor,
    bias: Tensor | None,
    approximate: int,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    grad, x = _in_front(grad, in_dims[0]), _in_front(x, in_dims[1])
    rows = _batched_bias(x, bias, in_dims[2])
    before = x.float() if rows is None else x.float() + rows.float()
    form = "tanh" if approximate else "none"
    shape = (max(grad.shape[0], before.shape[0]), *grad.shape[1:])
    dx = torch.ops.aten.gelu_backward(grad.float().expand(shape), before.expand(shape), approximate=form)
    dbias = dx.sum(list(range(1, dx.dim() - 1))) if dx.dim() > 2 else dx
    return (dx.to(x.dtype), dbias.to(x.dtype if bias is None else bias.dtype)), (0, 0)
