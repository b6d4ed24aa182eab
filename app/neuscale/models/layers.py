"""Layers that Swin and ViT share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def init_linear(module: nn.Module) -> None:
    """Initialise each Linear inside: truncated normal with std 0.02, zero bias (as in both papers)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class MLP(nn.Sequential):
    """Linear, GELU, dropout, Linear, dropout; [..., dim] → [..., dim].

    A Sequential, so that the parameters are named `0` and `3` as in torchvision's Swin
    and ViT. With `fused`, one op computes the first two layers, or, if there is no dropout in
    between and GELU is "tanh", the whole MLP (see `fused.py`).
    """

    fused: "FusedOps | None" = None

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is None or not all(map(_is_bare, (self[0], self[3]))):
            return super().forward(x)  # type: ignore[no-untyped-call]
        first, gelu, dropout, second, last = self
        if gelu.approximate == "tanh" and (dropout.p == 0.0 or not self.training):
            x = self.fused.gelu_mlp(
                x, first.weight, first.bias, second.weight, second.bias, "tanh", self.fused.implementation
            )
        else:
            x = self.fused.linear_gelu(
                x, first.weight, first.bias, gelu.approximate, self.fused.implementation
            )
            x = second(dropout(x))
        return last(x)


def _is_bare(module: nn.Module) -> bool:
    """True for a plain Linear: no hooks (as of FSDP) and not a subclass (as of LoRA)."""
    return type(module) is nn.Linear and not module._forward_pre_hooks and not module._forward_hooks


class FusedOps(NamedTuple):
    """The native ops of an MLP; `implementation`: their argument of that name."""

    linear_gelu: Callable[..., Tensor]
    gelu_mlp: Callable[..., Tensor]
    implementation: str


def set_gelu(model: nn.Module, approximate: str) -> None:
    """Set the GELU of every MLP in `model`: "none" (exact) or "tanh"."""
    for module in model.modules():
        if isinstance(module, MLP):
            module[1] = nn.GELU(approximate)


# The residual branches of a block that drop independently: attention and MLP.
BRANCHES = 2


class DropPath(nn.Module):
    """Drops a residual branch of whole samples (stochastic depth, Huang et al. 2016).

    [B, ...] → [B, ...]: each sample is zeroed with probability `rate` in training, and
    the others are scaled by 1 / (1 - rate). `scale` [branches, B] contains these factors if
    they are drawn elsewhere; without it they come from torch's generator.
    """

    scale: Tensor | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, branch: int = 0) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        if self.scale is not None:
            scale = self.scale[branch]
        else:
            keep = 1.0 - self.rate
            scale = torch.empty(x.shape[0], device=x.device).bernoulli_(keep).div_(keep)
        return x * scale.to(x.dtype).view(-1, *[1] * (x.dim() - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class _Take(torch.autograd.Function):
    """`x[:, order]` for a permutation; its gradient is another gather, not a scatter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(order, back)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, back = ctx.saved_tensors
        return _Take.apply(grad, back, order), None, None


def take_tokens(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """Tokens of x [B, L, C] in another order; `back` is the inverse permutation."""
    return _Take.apply(x, order, back)
