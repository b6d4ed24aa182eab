"""The ops in torch's own operations, for torch.func transforms and distributed tensors.

Torch's operations have rules for every transform; the fused kernels have them for gradients only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

_APPROXIMATE = ("none", "tanh")
_transforms_active = torch._C._are_functorch_transforms_active


def is_transformed(*tensors: Tensor) -> bool:
    """True inside torch.func transforms and forward-mode differentiation, and if a tensor is a DTensor."""
    if _transforms_active() or forward_ad._current_level >= 0:
        return True
    return any(type(tensor).__name__ == "DTensor" for tensor in tensors)


def plain_bias_gelu(x: Tensor, bias: Tensor, approximate: int) -> Tensor:
    """gelu(x + bias), computed in float32 and returned in x's dtype."""
    return F.gelu(x.float() + bias.float(), approximate=_APPROXIMATE[approximate]).to(x.dtype)


def plain_bias_gelu_backward(
    grad: Tensor, x: Tensor, bias: Tensor | None, approximate: int
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias; without `bias`, x already includes it, and both have x's dtype."""
    before = x.float() if bias is None else x.float() + bias.float()
    dx = torch.ops.aten.gelu_backward(grad.float(), before, approximate=_APPROXIMATE[approximate])
    rows = list(range(dx.dim() - 1))
    dbias = dx.sum(rows) if rows else dx
    return dx.to(x.dtype), dbias.to(x.dtype if bias is None else bias.dtype)


def plain_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(x weightᵀ + bias) in the tanh form, and the pre-activation x weightᵀ + bias."""
    before = F.linear(x, weight, bias)
    return F.gelu(before, approximate="tanh"), before


def plain_linear_gelu_backward(grad: Tensor, weight: Tensor, pre: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the hidden layer of an MLP: of its pre-activation `pre` and of the first bias."""
    return plain_bias_gelu_backward(grad @ weight, pre, None, 1)
