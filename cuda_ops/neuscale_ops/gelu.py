"""GELU of a biased input in one pass over memory, forward and backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from neuscale_ops.arguments import FLOATS, approximate_code, check_bias

_forward = torch.ops.neuscale_ops.bias_gelu.default
_backward = torch.ops.neuscale_ops.bias_gelu_backward.default


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """gelu(x + bias): [..., C] and [C] → [..., C] in x's dtype, computed in float32.

    GELU is Hendrycks and Gimpel's (2016): x · Φ(x), exactly for approximate="none" and by their
    tanh form for "tanh", as torch.nn.functional.gelu has them. float32, float16 or bfloat16; the
    bias may have another of these types than x. The bias gradient comes out of the same pass as
    x's, summed in float32 in a fixed order: equal runs on one device give equal bits, on any
    number of threads.

    Raises TypeError and ValueError that name the argument. Differentiable once, in reverse mode.
    """
    try:
        fits = (
            x.dtype in FLOATS
            and bias.dtype in FLOATS
            and bias.shape == x.shape[-1:]
            and bias.device == x.device
        )
    except AttributeError:  # no tensor: the full check says which
        fits = False
    if not fits:
        check_bias(x, bias)
    code = approximate_code(approximate)
    # A Function also where forward-mode differentiation is under way: it has no rule and says so,
    # while the bare op would drop the tangent.
    if forward_ad._current_level >= 0 or (
        torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad)
    ):
        return _BiasGelu.apply(x, bias, code)
    return _forward(x, bias, code)


class _BiasGelu(torch.autograd.Function):
    """A Function, as it costs half of what an autograd formula registered in Python does.

    Without setup_context, which costs as much again; torch.func's transforms ask for one, and
    refuse in words.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, approximate: int) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.approximate = approximate
        return _forward(x, bias, approximate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, bias = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # create_graph=True: fine, until someone differentiates what comes out.
            return *_Once.apply(grad, x, bias, ctx.approximate), None
        return *_backward(grad, x, bias, ctx.approximate), None


class _Once(torch.autograd.Function):
    """The backward, as a node of a graph whose own backward says why there is none."""

    @staticmethod
    def forward(_ctx: Any, grad: Tensor, x: Tensor, bias: Tensor, approximate: int) -> tuple[Tensor, Tensor]:
        return _backward(grad, x, bias, approximate)

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> None:
        raise RuntimeError(
            "bias_gelu has no second derivative: use torch.nn.functional.gelu(x + bias) where a gradient is"
            " differentiated again"
        )
