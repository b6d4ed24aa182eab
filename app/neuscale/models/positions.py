"""Interpolate position embeddings and bias tables of weights trained at another image or window size.

ViT embeddings are interpolated as in torchvision (`interpolate_embeddings`), bicubic with aligned corners;
Swin's relative position bias tables as by its authors, bicubic (github.com/microsoft/Swin-Transformer,
utils.py). For timm's models, timm's own function is called.
"""

import math
import sys
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EMBEDDING, _TABLE, _INDEX = "pos_embedding", "relative_position_bias_table", "relative_position_index"


def fit_positions(state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], int]:
    """`state` with its positions interpolated to the sizes of `model`, and the number of changed entries."""
    found, own = dict(state), model.state_dict()
    library = type(model).__module__
    if library.startswith("timm.") and (fit := getattr(sys.modules[library], "checkpoint_filter_fn", None)):
        filtered = dict(fit(found, model))
        changed = sum(
            name in filtered and filtered[name].shape != value.shape for name, value in found.items()
        )
        return filtered, changed
    changed = 0
    for name, value in found.items():
        if name not in own or value.shape == own[name].shape:
            continue
        if name.endswith(_EMBEDDING) and value.dim() == 3 and own[name].shape[2] == value.shape[2]:
            fitted = _embedding(value, own[name].shape[1])
        elif name.endswith(_TABLE) and value.dim() == 2 and own[name].shape[1] == value.shape[1]:
            fitted = _table(value, own[name].shape[0])
        elif name.endswith(_INDEX):
            fitted = own[name]  # computed from the window size
            changed -= 1
        else:
            continue
        if fitted is not None:
            found[name] = fitted
            changed += 1
    return found, changed


def _embedding(value: Tensor, positions: int) -> Tensor | None:
    """Interpolate [1, P, D] to `positions` positions, one of which may be the class token's."""
    for tokens in (0, 1):
        side, target = math.isqrt(value.shape[1] - tokens), math.isqrt(positions - tokens)
        if side**2 == value.shape[1] - tokens and target**2 == positions - tokens:
            grid = value[:, tokens:].transpose(1, 2).reshape(1, -1, side, side)
            resized = F.interpolate(grid.float(), (target, target), mode="bicubic", align_corners=True)
            patches = resized.flatten(2).transpose(1, 2).to(value.dtype)
            return torch.cat([value[:, :tokens], patches], dim=1)
    return None


def _table(value: Tensor, rows: int) -> Tensor | None:
    """Interpolate [(2w-1)², heads] to the window size of a table with `rows` rows."""
    side, target = math.isqrt(value.shape[0]), math.isqrt(rows)
    if side**2 != value.shape[0] or target**2 != rows:
        return None
    grid = value.t().reshape(1, -1, side, side).float()
    resized = F.interpolate(grid, (target, target), mode="bicubic")
    return resized.reshape(-1, rows).t().to(value.dtype)
