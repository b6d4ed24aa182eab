"""GELU of a biased input in one pass over memory, forward and backward."""

from typing import Any

import torch
from torch import Tensor

from neuscale_ops import autograd
from neuscale_ops.arguments import FLOATS, approximate_code, check_bias
from neuscale_ops.autograd import below_autograd
from neuscale_ops.plain import is_transformed, plain_bias_gelu, plain_bias_gelu_backward

_forward = torch.ops.neuscale_ops.bias_gelu.default
_backward = torch.ops.neuscale_ops.bias_gelu_backward.default


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """gelu(x + bias): [..., C] and [C] → [..., C] in x's dtype, computed in float32.

    GELU (Hendrycks and Gimpel, 2016) is x · Φ(x): exact for approximate="none", their tanh form for
    "tanh", as in torch.nn.functional.gelu. Dtypes are float32, float16 and bfloat16; x and the bias
    may have different ones. The backward pass computes both gradients in one pass and sums the bias
    gradient in float32 in a fixed order: equal runs on one device are bit-identical, with any
    number of threads.

    For torch.func transforms, forward-mode differentiation, second derivatives and distributed
    tensors, torch's own operations are used instead. Raises TypeError or ValueError naming the
    argument.
    """
    try:
        fits = (
            x.dtype in FLOATS
            and bias.dtype in FLOATS
            and bias.shape == x.shape[-1:]
            and bias.device == x.device
            and x.layout is torch.strided
            and bias.layout is torch.strided
        )
    except (AttributeError, RuntimeError):  # not a tensor, or a nested one: check_bias raises the error
        fits = False
    if not fits:
        check_bias(x, bias)
    code = approximate_code(approximate)
    if is_transformed(x, bias):
        return plain_bias_gelu(x, bias, code)
    if torch.compiler.is_compiling():
        return _forward(x, bias, code)
    if torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad):
        return _BiasGelu.apply(x, bias, code)
    with below_autograd():  # skip the Python autograd kernel, which costs time even without gradients
        return _forward(x, bias, code)


class _BiasGelu(torch.autograd.Function):
    """Autograd Function of bias_gelu; it costs half as much as an autograd formula registered in Python.

    It has no setup_context, which would double its cost. torch.func transforms require one, but
    never reach this class.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, approximate: int) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.approximate = approximate
        with below_autograd():
            return _forward(x, bias, approximate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, bias = ctx.saved_tensors
        return *_gradients(grad, x, bias, ctx.approximate), None


def _gradients(grad: Tensor, x: Tensor, bias: Tensor, approximate: int) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():
        return _backward(grad, x, bias, approximate)
    if torch.is_grad_enabled() or is_transformed(grad, x, bias):  # create_graph=True
        return plain_bias_gelu_backward(grad, x, bias, approximate)
    with below_autograd():
        return _backward(grad, x, bias, approximate)


autograd.register(_BiasGelu)
