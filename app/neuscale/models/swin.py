"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030) for images of any size.

Parameters have torchvision's names and shapes, so weights go to and from
`torchvision.models.swin_*` as they are. The forward is our own: the window is fitted to
the map instead of the map padded to the window, the tokens stay in window order from one
block to the next, and attention is `scaled_dot_product_attention`. Where torchvision
pads nothing, the outputs are equal.

Shapes: B images, L tokens, C channels, W windows of T tokens, H heads of D channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuscale.models.layers import MLP, DropPath, init_linear, take_tokens
from neuscale.models.windows import (
    WindowPlan,
    inverse,
    relative_position_index,
    shift_mask,
    window_order,
    window_plan,
)


class WindowAttention(nn.Module):
    """Attention inside windows, with a learnable bias per relative position.

    [B, L, C] → [B, L, C], the tokens in window order.
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
        # In the state dict as in torchvision's, for the nominal window; `index` is the one in use.
        self.register_buffer(
            "relative_position_index",
            relative_position_index(window_size, window_size, window_size).flatten(),
        )
        index = relative_position_index(plan.window_h, plan.window_w, window_size)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("mask", shift_mask(plan, shift), persistent=False)

    def bias(self) -> Tensor:
        """What is added to the scores: [1, H, T, T], or [1, W * H, T, T] where windows are masked."""
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
        # The windows join the heads where each has its own mask, and the batch where they share one.
        lead = (B * W, H) if self.mask is None else (B, W * H)
        q, k, v = qkv.reshape(3, *lead, T, C // H).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x.reshape(B, W, H, T, C // H).transpose(2, 3).reshape(B, L, C)
        return self.dropout(self.proj(x))


class SwinBlock(nn.Module):
    """One block: attention in windows, then an MLP, each with a residual.

    [B, L, C] → [B, L, C]. Takes its tokens in the order of whatever came before
    (`arrives`) and leaves them in its own (`order`).
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
        # No shift along a side that one window covers.
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
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SwinStage(nn.Sequential):
    """The blocks that work on maps of one size: [B, L, C] in raster order → [B, L', C] in window order.

    L' is larger than L where the map had to be padded to whole windows.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int,
        plan: WindowPlan,
        mlp_ratio: float,
        dropout: float,
        drop_path_rates: list[float],
    ) -> None:
        order = torch.arange(plan.padded_h * plan.padded_w)
        blocks = []
        for i, rate in zip(range(depth), drop_path_rates, strict=True):
            block = SwinBlock(dim, num_heads, window_size, plan, i % 2 == 1, order, mlp_ratio, dropout, rate)
            order = block.order
            blocks.append(block)
        super().__init__(*blocks)
        self.plan = plan
        self.order = order
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan
        if plan.padded:
            B, _, C = x.shape
            margins = (0, 0, 0, plan.padded_w - plan.width, 0, plan.padded_h - plan.height)
            x = F.pad(x.view(B, plan.height, plan.width, C), margins).flatten(1, 2)
        for block in self:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class PatchMerging(nn.Module):
    """Joins 2×2 tokens into one and doubles the channels.

    [B, L', C] in the order of the stage before → [B, L / 4, 2C] in raster order. An odd
    map gets a row or a column of zeros, as in torchvision.
    """

    index: Tensor
    back: Tensor | None

    def __init__(self, dim: int, plan: WindowPlan, order: Tensor) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)
        self.height, self.width = -(-plan.height // 2), -(-plan.width // 2)
        self.odd = bool(plan.height % 2 or plan.width % 2)
        # Where in x the token at (row, column) stands; one past the end is the token of zeros.
        where = inverse(order).view(plan.padded_h, plan.padded_w)[: plan.height, : plan.width]
        where = F.pad(where, (0, plan.width % 2, 0, plan.height % 2), value=len(order))
        quarters = [where[0::2, 0::2], where[1::2, 0::2], where[0::2, 1::2], where[1::2, 1::2]]
        index = torch.stack(quarters, -1).flatten()
        self.register_buffer("index", index, persistent=False)
        # Only a permutation has its inverse for a gradient.
        permutes = not self.odd and not plan.padded
        self.register_buffer("back", inverse(index) if permutes else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.odd:
            x = F.pad(x, (0, 0, 0, 1))
        x = x.index_select(1, self.index) if self.back is None else take_tokens(x, self.index, self.back)
        return self.reduction(self.norm(x.reshape(x.shape[0], self.height * self.width, -1)))


class PatchEmbedding(nn.Sequential):
    """Non-overlapping patches, projected and normalised: [B, in_channels, h, w] → [B, L, C] in raster order.

    A Sequential, so that the parameters are `0` (projection) and `2` (norm) as in torchvision.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, dim, patch_size, patch_size), _Tokens(), nn.LayerNorm(dim, eps=1e-5)
        )


class _Tokens(nn.Module):
    """[B, C, h, w] → [B, h * w, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class SwinTransformer(nn.Module):
    """Images [B, in_channels, image_size, image_size] → logits [B, num_classes].

    Raises ValueError where the sizes do not go together.
    """

    pooled: Tensor | None

    def __init__(
        self,
        image_size: int,
        num_classes: int,
        in_channels: int = 3,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"an image of {image_size} pixels does not divide into patches of {patch_size}")
        if not depths or len(depths) != len(num_heads):
            raise ValueError(f"depths has {len(depths)} stages and num_heads has {len(num_heads)}")
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        height = width = image_size // patch_size
        dim = embed_dim
        features: list[nn.Module] = [PatchEmbedding(in_channels, dim, patch_size)]
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            if dim % heads:
                raise ValueError(f"stage {i + 1}: {dim} channels do not divide into {heads} heads")
            plan = window_plan(height, width, window_size)
            stage = SwinStage(
                dim, depth, heads, window_size, plan, mlp_ratio, dropout, [next(rates) for _ in range(depth)]
            )
            stage.gradient_checkpointing = gradient_checkpointing
            features.append(stage)
            if i < len(depths) - 1:
                merging = PatchMerging(dim, plan, stage.order)
                features.append(merging)
                dim, height, width = 2 * dim, merging.height, merging.width
        self.features = nn.Sequential(*features)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, num_classes)
        init_linear(self)
        # Only real tokens are pooled.
        row, column = stage.order // plan.padded_w, stage.order % plan.padded_w
        real = ((row < plan.height) & (column < plan.width)).nonzero().squeeze(1)
        self.register_buffer("pooled", real if plan.padded else None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images)
        if self.pooled is not None:
            x = x.index_select(1, self.pooled)
        return self.head(self.norm(x).mean(1))
