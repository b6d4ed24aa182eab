"""One block of a Swin Transformer: attention inside windows, and an MLP.

Shapes: B images, L tokens, C channels, W windows of T tokens, H heads of D channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuscale.models.layers import MLP, DropPath, take_tokens
from neuscale.models.windows import WindowPlan, inverse, relative_position_index, shift_mask, window_order


class WindowAttention(nn.Module):
    """Attention inside windows, with a learnable bias per relative position.

    [B, L, C] → [B, L, C], with tokens in window order.
    """

    mask: Tensor | None
    index: Tensor
    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        plan: WindowPlan,
        shift: tuple[int, int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.windows, self.window_tokens = plan.windows, plan.window_tokens
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # For the nominal window, only for the state dict, as in torchvision; `index` is used.
        self.register_buffer(
            "relative_position_index",
            relative_position_index(window_size, window_size, window_size).flatten(),
        )
        index = relative_position_index(plan.window_h, plan.window_w, window_size)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("mask", shift_mask(plan, shift), persistent=False)

    def bias(self) -> Tensor:
        """Bias added to the attention scores: [1, H, T, T], or [1, W * H, T, T] if windows are masked."""
        bias = self.relative_position_bias_table[self.index.view(-1)]
        bias = bias.view(self.window_tokens, self.window_tokens, -1).permute(2, 0, 1)
        if self.mask is None:
            return bias.unsqueeze(0)
        return (bias + self.mask.unsqueeze(1)).flatten(0, 1).unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        B, L, C = x.shape
        W, T, H = self.windows, self.window_tokens, self.num_heads
        qkv = self.qkv(x).view(B, W, T, 3, H, C // H).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias()
        # Windows are merged into the head dimension if each has its own mask, else into the batch.
        lead = (B * W, H) if self.mask is None else (B, W * H)
        q, k, v = qkv.reshape(3, *lead, T, C // H).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x.reshape(B, W, H, T, C // H).transpose(2, 3).reshape(B, L, C)
        return self.dropout(self.proj(x))


class SwinBlock(nn.Module):
    """One block: attention in windows, then an MLP, each with a residual.

    [B, L, C] → [B, L, C]. The input tokens are in the order of the previous block
    (`arrives`), the output tokens in this block's own (`order`).
    """

    take: Tensor | None
    back: Tensor | None
    valid: Tensor | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        plan: WindowPlan,
        shifted: bool,
        arrives: Tensor,
        mlp_ratio: float,
        dropout: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        # No shift along a side that a single window covers.
        shift_h = plan.window_h // 2 if shifted and plan.window_h < plan.padded_h else 0
        shift_w = plan.window_w // 2 if shifted and plan.window_w < plan.padded_w else 0
        self.order = window_order(plan, (shift_h, shift_w))
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = WindowAttention(dim, num_heads, window_size, plan, (shift_h, shift_w), dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = MLP(dim, int(dim * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path_rate)

        take = inverse(arrives)[self.order]
        same = bool((take == torch.arange(len(take))).all())
        self.register_buffer("take", None if same else take, persistent=False)
        self.register_buffer("back", None if same else inverse(take), persistent=False)
        row, column = self.order // plan.padded_w, self.order % plan.padded_w
        valid = ((row < plan.height) & (column < plan.width)).unsqueeze(-1)
        self.register_buffer("valid", valid if plan.padded else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.take is not None and self.back is not None:
            x = take_tokens(x, self.take, self.back)
        normed = self.norm1(x)
        if self.valid is not None:  # padding enters attention as zeros, as in torchvision
            normed = normed * self.valid
        x = x + self.drop_path(self.attn(normed))
        return x + self.drop_path(self.mlp(self.norm2(x)), branch=1)
