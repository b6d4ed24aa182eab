"""Linear layer followed by GELU, and MLP of two Linear layers with GELU between them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuscale_ops.arguments import approximate_code, check_device, check_float
from neuscale_ops.choice import choose
from neuscale_ops.gelu import bias_gelu
from neuscale_ops.plain import is_transformed

_forward = torch.ops.neuscale_ops.linear_gelu.default
_backward = torch.ops.neuscale_ops.linear_gelu_backward.default
_gelu_backward = torch.ops.neuscale_ops.bias_gelu_backward.default

TANH = 1


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, approximate: str = "tanh", implementation: str = "auto"
) -> Tensor:
    """gelu(x weightᵀ + bias): [..., K], [N, K] and [N] → [..., N].

    `implementation` selects where bias and GELU are computed: "epilogue", in the epilogue of the
    cuBLASLt GEMM (CUDA, tanh form, float16 or bfloat16, K and N multiples of 8); "separate", by
    `bias_gelu` after the GEMM; "auto", the faster of the two on this device, timed once for each
    shape. Inside torch.compile and CUDA graph capture, where nothing can be timed, "auto" is
    "separate".

    Under autocast, all tensors are cast as by torch.nn.functional.linear. Raises TypeError or
    ValueError naming the argument. Like `bias_gelu`, it uses torch's own operations for torch.func
    transforms and distributed tensors. With "epilogue" it can be differentiated only once.
    """
    code = approximate_code(approximate)
    _check(x, weight, bias)
    cast = _autocast(x, weight, bias)
    if is_transformed(*cast):
        return F.gelu(F.linear(*cast), approximate=approximate)
    if choose("linear_gelu", implementation, code == TANH, cast, _epilogue_linear, _separate_linear):
        return _epilogue_linear(*cast)
    return bias_gelu(F.linear(x, weight), bias, approximate)


def gelu_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    approximate: str = "tanh",
    implementation: str = "auto",
) -> Tensor:
    """linear(gelu(linear(x, weight1, bias1)), weight2, bias2): [..., K] → [..., P].

    weight1 is [N, K] and weight2 [P, N]. The other arguments, autocast and errors are as in
    `linear_gelu`. With "epilogue", the backward GEMM of the second Linear also applies GELU's
    derivative and sums the gradient of bias1.
    """
    code = approximate_code(approximate)
    _check(x, weight1, bias1)
    _check_second(weight1, weight2, bias2)
    cast = _autocast(x, weight1, bias1, weight2, bias2)
    if is_transformed(*cast):
        x, weight1, bias1, weight2, bias2 = cast
        return F.linear(F.gelu(F.linear(x, weight1, bias1), approximate=approximate), weight2, bias2)
    if choose("gelu_mlp", implementation, code == TANH, cast, _epilogue_mlp, _separate_mlp):
        return _epilogue_mlp(*cast)
    return F.linear(bias_gelu(F.linear(x, weight1), bias1, approximate), weight2, bias2)


class LinearGELU(nn.Linear):
    """Linear layer followed by GELU: [..., in_features] → [..., out_features].

    Parameter names, shapes and initialisation are those of nn.Linear: a checkpoint of either class
    loads into the other.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        approximate: str = "tanh",
        implementation: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=True, device=device, dtype=dtype)
        approximate_code(approximate)
        self.approximate = approximate
        self.implementation = implementation

    def forward(self, x: Tensor) -> Tensor:
        return linear_gelu(x, self.weight, self.bias, self.approximate, self.implementation)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, approximate={self.approximate!r}"


def _separate_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return bias_gelu(F.linear(x, weight), bias, "tanh")


def _separate_mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return F.linear(_separate_linear(x, weight1, bias1), weight2, bias2)


def _epilogue_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = _LinearGelu.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def _epilogue_mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    y = _GeluMlp.apply(x.reshape(-1, x.shape[-1]), weight1, bias1, weight2, bias2)
    return y.view(*x.shape[:-1], weight2.shape[0])


class _LinearGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, pre = _forward(x, weight, bias)
        ctx.save_for_backward(x, weight, pre)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight, pre = ctx.saved_tensors
        dpre, dbias = _gelu_backward(grad, pre, None, TANH)
        needs_x, needs_weight, _ = ctx.needs_input_grad
        return dpre @ weight if needs_x else None, dpre.t() @ x if needs_weight else None, dbias


class _GeluMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor
    ) -> Tensor:
        hidden, pre = _forward(x, weight1, bias1)
        ctx.save_for_backward(x, weight1, weight2, hidden, pre)
        return F.linear(hidden, weight2, bias2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, weight2, hidden, pre = ctx.saved_tensors
        needs_x, needs_weight1, _, needs_weight2, needs_bias2 = ctx.needs_input_grad
        grad = grad.contiguous()
        dpre, dbias1 = _backward(grad, weight2, pre)
        return (
            dpre @ weight1 if needs_x else None,
            dpre.t() @ x if needs_weight1 else None,
            dbias1,
            grad.t() @ hidden if needs_weight2 else None,
            grad.sum(0) if needs_bias2 else None,
        )


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast the tensors as autocast casts the inputs of a GEMM."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_float("x", x)
    check_float("weight", weight)
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"weight: shape [N, {x.shape[-1] if x.dim() else '?'}], the last dimension of x, not"
            f" {list(weight.shape)}"
        )
    check_device(weight, "weight", x, "x")
    check_float("bias", bias)
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias: shape [{weight.shape[0]}], the first dimension of weight, not {list(bias.shape)}"
        )
    check_device(bias, "bias", x, "x")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"weight: {x.dtype} as x, not {weight.dtype}")


def _check_second(weight1: Tensor, weight2: Tensor, bias2: Tensor) -> None:
    check_float("weight2", weight2)
    check_float("bias2", bias2)
    if weight2.dim() != 2 or weight2.shape[1] != weight1.shape[0]:
        raise ValueError(f"weight2: shape [P, {weight1.shape[0]}], not {list(weight2.shape)}")
    if bias2.shape != weight2.shape[:1]:
        raise ValueError(f"bias2: shape [{weight2.shape[0]}], not {list(bias2.shape)}")
    check_device(weight2, "weight2", weight1, "weight1")
    check_device(bias2, "bias2", weight1, "weight1")
