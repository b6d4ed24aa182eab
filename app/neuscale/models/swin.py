"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030) for images of any size.

Parameters have torchvision's names and shapes, so weights can be exchanged with
`torchvision.models.swin_*` unchanged. The forward pass is our own: the window is fitted
to the map instead of padding the map to the window, tokens stay in window order from one
block to the next, and attention is `scaled_dot_product_attention`. If torchvision does
not pad, the outputs are equal.

Shapes: B images, L tokens, C channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuscale.models.layers import init_linear, set_gelu, take_tokens
from neuscale.models.swin_block import SwinBlock
from neuscale.models.windows import WindowPlan, inverse, window_plan


class SwinStage(nn.Sequential):
    """The blocks that work on maps of one size: [B, L, C] in raster order → [B, L', C] in window order.

    L' is larger than L if the map was padded to whole windows.
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

    [B, L', C] in the order of the previous stage → [B, L / 4, 2C] in raster order. A map of
    odd size gets a row or a column of zeros, as in torchvision.
    """

    index: Tensor
    back: Tensor | None

    def __init__(self, dim: int, plan: WindowPlan, order: Tensor) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)
        self.height, self.width = -(-plan.height // 2), -(-plan.width // 2)
        self.odd = bool(plan.height % 2 or plan.width % 2)
        # Index in x of the token at (row, column); one past the end is the zero token.
        where = inverse(order).view(plan.padded_h, plan.padded_w)[: plan.height, : plan.width]
        where = F.pad(where, (0, plan.width % 2, 0, plan.height % 2), value=len(order))
        quarters = [where[0::2, 0::2], where[1::2, 0::2], where[0::2, 1::2], where[1::2, 1::2]]
        index = torch.stack(quarters, -1).flatten()
        self.register_buffer("index", index, persistent=False)
        # `take_tokens`, whose gradient is a gather, needs a permutation.
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

    Raises ValueError if the sizes are not compatible.
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
        gelu_approximate: str = "none",
    ) -> None:
        super().__init__()
        self.image_size = image_size
        if image_size % patch_size:
            raise ValueError(f"an image of {image_size} pixels does not divide into patches of {patch_size}")
        if not depths or len(depths) != len(num_heads):
            raise ValueError(
                f"depths has {len(depths)} stages and num_heads {len(num_heads)}: not as many, or none"
            )
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
        set_gelu(self, gelu_approximate)
        # Only real tokens are pooled.
        row, column = stage.order // plan.padded_w, stage.order % plan.padded_w
        real = ((row < plan.height) & (column < plan.width)).nonzero().squeeze(1)
        self.register_buffer("pooled", real if plan.padded else None, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # Tokens are indexed by position: another image size would give wrong logits, not an error.
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"a model for {self.image_size}-pixel images got {tuple(images.shape)}")
        x = self.features(images)
        if self.pooled is not None:
            x = x.index_select(1, self.pooled)
        return self.head(self.norm(x).mean(1))
