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

    GELU is Hendrycks and Gimpel's (2016): x · Φ(x), exactly for approximate="none" and by their
    tanh form for "tanh", as torch.nn.functional.gelu has them. float32, float16 or bfloat16; the
    bias may have another of these types than x. The bias gradient comes out of the same pass as
    x's, summed in float32 in a fixed order: equal runs on one device give equal bits, on any
    number of threads.

    Under transforms of torch.func, forward-mode differentiation, a second derivative, and for
    distributed tensors, torch's own operations compute it. Raises TypeError and ValueError that
    name the argument.
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
    except (AttributeError, RuntimeError):  # no tensor, or a nested one: the full check says which
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
    with below_autograd():  # the formula in Python below takes its time also where nothing is differentiated
        return _forward(x, bias, code)


class _BiasGelu(torch.autograd.Function):
    """A Function, as it costs half of what the autograd formula that is registered in Python does.

    Without setup_context, which costs as much again; the transforms of torch.func, which ask for
    one, do not come here.
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
