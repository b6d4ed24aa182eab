"""Forward passes of Swin and ViT, computed from the named parameters.

`keep(block, branch)` is the drop path factor of the branch for each sample, [B], or 1.
Dropout draws from torch's generator, in the order of the forward pass.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Keep = Callable[[int, int], Tensor | float]
Parameters = dict[str, Tensor]


def _norm(x: Tensor, p: Parameters, name: str, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def _linear(x: Tensor, p: Parameters, name: str) -> Tensor:
    y = x @ p[f"{name}.weight"].mT
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def _gelu(x: Tensor, approximate: str) -> Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def _times(branch: Tensor, keep: Tensor | float) -> Tensor:
    return branch * keep.view(-1, *[1] * (branch.dim() - 1)) if isinstance(keep, Tensor) else branch * keep


def _mlp(x: Tensor, p: Parameters, name: str, dropout: float, approximate: str) -> Tensor:
    hidden = F.dropout(_gelu(_linear(x, p, f"{name}.0"), approximate), dropout)
    return F.dropout(_linear(hidden, p, f"{name}.3"), dropout)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5 + bias
    return scores.softmax(-1) @ v


def vit(
    p: Parameters, images: Tensor, *, heads: int, keep: Keep, dropout: float = 0.0, approximate: str = "none"
) -> Tensor:
    """Logits of a ViT with a class token, pre-norm (Dosovitskiy et al. 2021)."""
    patch = p["conv_proj.weight"].shape[-1]
    x = F.conv2d(images, p["conv_proj.weight"], p["conv_proj.bias"], stride=patch).flatten(2).mT
    x = torch.cat([p["class_token"].expand(len(x), 1, -1), x], 1)
    x = F.dropout(x + p["encoder.pos_embedding"], dropout)
    B, L, C = x.shape
    for block in range(sum(name.endswith("ln_1.weight") for name in p)):
        name = f"encoder.layers.encoder_layer_{block}"
        y = _norm(x, p, f"{name}.ln_1", 1e-6)
        qkv = y @ p[f"{name}.self_attention.in_proj_weight"].mT + p[f"{name}.self_attention.in_proj_bias"]
        q, k, v = (part.view(B, L, heads, C // heads).transpose(1, 2) for part in qkv.split(C, -1))
        y = _attention(q, k, v).transpose(1, 2).reshape(B, L, C)
        y = F.dropout(_linear(y, p, f"{name}.self_attention.out_proj"), dropout)
        x = x + _times(y, keep(block, 0))
        y = _mlp(_norm(x, p, f"{name}.ln_2", 1e-6), p, f"{name}.mlp", dropout, approximate)
        x = x + _times(y, keep(block, 1))
    return _linear(_norm(x, p, "encoder.ln", 1e-6)[:, 0], p, "heads.head")


def swin(
    p: Parameters,
    images: Tensor,
    *,
    heads: tuple[int, ...],
    window: int,
    keep: Keep,
    approximate: str = "none",
) -> Tensor:
    """Logits of a Swin whose maps are whole windows or one smaller window (Liu et al. 2021); no dropout."""
    patch = p["features.0.0.weight"].shape[-1]
    x = F.conv2d(images, p["features.0.0.weight"], p["features.0.0.bias"], stride=patch).permute(0, 2, 3, 1)
    x = _norm(x, p, "features.0.2", 1e-5)
    number = 0
    for stage, of_stage in enumerate(heads):
        depth = sum(n.startswith(f"features.{2 * stage + 1}.") and n.endswith("norm1.weight") for n in p)
        for block in range(depth):
            name = f"features.{2 * stage + 1}.{block}"
            y = _norm(x, p, f"{name}.norm1", 1e-5)
            y = _shifted_windows(y, p, f"{name}.attn", of_stage, window, shifted=block % 2 == 1)
            x = x + _times(y, keep(number, 0))
            y = _mlp(_norm(x, p, f"{name}.norm2", 1e-5), p, f"{name}.mlp", 0.0, approximate)
            x = x + _times(y, keep(number, 1))
            number += 1
        if stage < len(heads) - 1:
            name = f"features.{2 * stage + 2}"
            quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
            x = _linear(_norm(torch.cat(quarters, -1), p, f"{name}.norm", 1e-5), p, f"{name}.reduction")
    return _linear(_norm(x, p, "norm", 1e-5).mean((1, 2)), p, "head")


def _shifted_windows(x: Tensor, p: Parameters, name: str, heads: int, nominal: int, shifted: bool) -> Tensor:
    """Attention within windows of a map [B, S, S, C], rolled by half a window where `shifted`."""
    B, side, _, C = x.shape
    window = min(nominal, side)
    assert side % window == 0
    shift = window // 2 if shifted and window < side else 0
    count = side // window

    def windows(of: Tensor) -> Tensor:
        """[B, S, S, C] → [B, windows, tokens, C]."""
        cut = of.roll((-shift, -shift), (1, 2)).view(len(of), count, window, count, window, -1)
        return cut.transpose(2, 3).reshape(len(of), count**2, window**2, -1)

    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    at = windows(torch.stack([row, column], -1)[None])[0]  # original row and column of each token
    behind = at < shift  # it was rolled around the border
    apart = (behind[:, :, None] != behind[:, None, :]).any(-1)[None, :, None]
    place = torch.arange(window**2)
    table = p[f"{name}.relative_position_bias_table"].view(2 * nominal - 1, 2 * nominal - 1, heads)
    down = place[:, None] // window - place[None] // window + nominal - 1
    right = place[:, None] % window - place[None] % window + nominal - 1
    bias = table[down, right].permute(2, 0, 1) + torch.where(apart, -100.0, 0.0)

    qkv = windows(_linear(x, p, f"{name}.qkv")).view(B, count**2, window**2, 3, heads, C // heads)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)
    y = _attention(q, k, v, bias).transpose(2, 3).reshape(B, count, count, window, window, C)
    y = y.transpose(2, 3).reshape(B, side, side, C).roll((shift, shift), (1, 2))
    return _linear(y, p, f"{name}.proj")
