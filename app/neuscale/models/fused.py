"""Choose and enable the native ops for the models' MLPs."""

from dataclasses import dataclass

import torch
from torch import nn

from neuscale.config.model_options import ModelConfig, TransformerConfig
from neuscale.errors import UsageError
from neuscale.models.layers import MLP, FusedOps
from neuscale.native_ops import native_ops


@dataclass(frozen=True)
class OpsChoice:
    """`kind`: fused or eager; `reason`: why native ops are not used, unless eager was asked for."""

    kind: str
    reason: str = ""


def choose_ops(config: ModelConfig, device: torch.device) -> OpsChoice:
    """The ops for `model.ops` (auto, fused, eager) on `device`. Raises UsageError if fused is not possible.

    Models of other libraries have no such field and run eagerly.
    """
    wanted = config.ops if isinstance(config, TransformerConfig) else "eager"
    if wanted == "eager":
        return OpsChoice("eager")
    ops, reason = native_ops(device)
    if ops is not None:
        return OpsChoice("fused")
    if wanted == "fused":
        raise UsageError(f"model.ops=fused: {reason}.", "Build them with 'make ops', or take model.ops=auto.")
    return OpsChoice("eager", reason)


def fuse(model: nn.Module, device: torch.device, deterministic: bool = False) -> None:
    """Compute every MLP of `model` with the native ops; parameters and state dict stay as they are.

    On a GPU the faster of two implementations is chosen by timing, except with `deterministic`.
    """
    ops, reason = native_ops(device)
    assert ops is not None, reason
    fused = FusedOps(ops.linear_gelu, ops.gelu_mlp, "separate" if deterministic else "auto")
    for module in model.modules():
        if isinstance(module, MLP):
            module.fused = fused
