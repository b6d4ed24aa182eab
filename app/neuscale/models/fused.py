"""The fused MLP: Linear and GELU as one op, with the parameters of the Linear that it replaces."""

from dataclasses import dataclass

import torch
from torch import nn

from neuscale.errors import UsageError
from neuscale.models.layers import MLP
from neuscale.native_ops import native_ops


@dataclass(frozen=True)
class OpsChoice:
    """`kind`: fused or eager; `reason`: why, where it was not asked for."""

    kind: str
    reason: str = ""


def choose_ops(wanted: str, device: torch.device) -> OpsChoice:
    """What `model.ops` (auto, fused, eager) means on `device`. UsageError where fused cannot be."""
    if wanted == "eager":
        return OpsChoice("eager")
    ops, reason = native_ops(device)
    if ops is not None:
        return OpsChoice("fused")
    if wanted == "fused":
        raise UsageError(f"model.ops=fused: {reason}.", "Build them with 'make ops', or take model.ops=auto.")
    return OpsChoice("eager", reason)


def fuse(model: nn.Module, device: torch.device) -> None:
    """Puts the fused op into every MLP of `model`; parameters and state dict stay as they are."""
    ops, reason = native_ops(device)
    assert ops is not None, reason
    for module in model.modules():
        if isinstance(module, MLP):
            linear, gelu = module[0], module[1]
            assert isinstance(linear, nn.Linear) and isinstance(gelu, nn.GELU)
            fused = ops.LinearGELU(
                linear.in_features, linear.out_features, approximate=gelu.approximate, device="meta"
            )
            fused.weight, fused.bias = linear.weight, linear.bias
            module[0], module[1] = fused, nn.Identity()
