"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) for small images and small patches.

A 64×64 image in patches of 4 has 256 tokens. Position embeddings are learnable and
absolute; the head reads a class token or the mean of the patches. Parameters are named
as in torchvision's `VisionTransformer`.

Shapes: B images, L tokens, C channels, H heads of D channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuscale.models.layers import MLP, DropPath, init_linear, set_gelu


class SelfAttention(nn.Module):
    """[B, L, C] → [B, L, C]; parameters as in `nn.MultiheadAttention`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        B, L, C = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(B, L, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(x.transpose(1, 2).reshape(B, L, C))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual: [B, L, C] → [B, L, C]."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, dropout: float, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = SelfAttention(dim, num_heads)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.dropout(self.self_attention(self.ln_1(x))))
        return x + self.drop_path(self.mlp(self.ln_2(x)), branch=1)


class Encoder(nn.Module):
    """Position embeddings, the blocks and the final norm: [B, L, C] → [B, L, C]."""

    def __init__(
        self,
        tokens: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: float,
        dropout: float,
        drop_path_rate: float,
        gradient_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, dim))
        nn.init.trunc_normal_(self.pos_embedding, std=0.02)
        self.dropout = nn.Dropout(dropout)
        rates = torch.linspace(0, drop_path_rate, num_layers).tolist()
        self.layers = nn.Sequential()
        for i, rate in enumerate(rates):
            self.layers.add_module(
                f"encoder_layer_{i}", EncoderBlock(dim, num_heads, mlp_ratio, dropout, rate)
            )
        self.ln = nn.LayerNorm(dim, eps=1e-6)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x + self.pos_embedding)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return self.ln(x)


class VisionTransformer(nn.Module):
    """Images [B, in_channels, image_size, image_size] → logits [B, num_classes].

    `pool`: "token" (a class token is added) or "mean" (of the patches). Raises
    ValueError if the sizes are not compatible.
    """

    class_token: nn.Parameter | None

    def __init__(
        self,
        image_size: int,
        num_classes: int,
        in_channels: int = 3,
        patch_size: int = 4,
        hidden_dim: int = 384,
        num_layers: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        pool: str = "token",
        dropout: float = 0.0,
        drop_path_rate: float = 0.0,
        gradient_checkpointing: bool = False,
        gelu_approximate: str = "none",
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"an image of {image_size} pixels does not divide into patches of {patch_size}")
        if hidden_dim % num_heads:
            raise ValueError(f"{hidden_dim} channels do not divide into {num_heads} heads")
        self.conv_proj = nn.Conv2d(in_channels, hidden_dim, patch_size, patch_size)
        tokens = (image_size // patch_size) ** 2
        if pool == "token":
            self.class_token = nn.Parameter(torch.zeros(1, 1, hidden_dim))
            tokens += 1
        else:
            self.register_parameter("class_token", None)
        self.encoder = Encoder(
            tokens,
            hidden_dim,
            num_layers,
            num_heads,
            mlp_ratio,
            dropout,
            drop_path_rate,
            gradient_checkpointing,
        )
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(hidden_dim, num_classes))
        init_linear(self)
        set_gelu(self, gelu_approximate)
        # The patch projection is initialised like a Linear, scaled to its number of inputs.
        fan_in = in_channels * patch_size**2
        nn.init.trunc_normal_(self.conv_proj.weight, std=fan_in**-0.5)
        assert self.conv_proj.bias is not None
        nn.init.zeros_(self.conv_proj.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_proj(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            # Not len(x), which is a constant for torch.export, not the batch dimension.
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.encoder(x)
        pooled = x.mean(1) if self.class_token is None else x[:, 0]
        return self.heads(pooled)
