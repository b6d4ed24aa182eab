"""The model of a configuration, on its device and ready to train."""

from dataclasses import dataclass

import torch
from torch import nn

from neuscale.config import Config
from neuscale.data.formats.meta import PackedMeta
from neuscale.hardware import check_compiler
from neuscale.models.fused import OpsChoice, fuse
from neuscale.models.registry import create_model
from neuscale.models.weights import load_starting_weights
from neuscale.progress import Progress
from neuscale.training.flops import training_flops
from neuscale.training.param_groups import freeze


@dataclass(frozen=True)
class BuiltModel:
    """A model, those of its modules that are frozen, and its FLOPs of training on an image (if countable)."""

    module: nn.Module
    frozen: list[nn.Module]
    flops: float | None


def build_model(
    config: Config, size: int, meta: PackedMeta, device: torch.device, ops: OpsChoice, progress: Progress
) -> BuiltModel:
    """The model for images of `size`×`size` pixels.

    Initialised from `run.seed`, with the pretrained weights of `model.weights`; compiled in place if
    asked for, so that the names of its parameters stay. Raises UsageError or CheckpointError.
    """
    sizes = (size, meta.channels, meta.num_classes)
    model = create_model(config.model, *sizes, config.run.seed)
    if config.model.weights is not None:
        progress.message(load_starting_weights(model, config.model, *sizes))
    flops = training_flops(model, meta.channels, size)
    frozen = freeze(model, config.train)
    if ops.kind == "fused":
        fuse(model, device, config.run.deterministic)
    model = model.to(device)
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.train.compile:
        check_compiler()
        model.compile()
    return BuiltModel(model, frozen, flops)
