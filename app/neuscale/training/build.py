"""The model of a configuration, on its device and ready to train."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from neuscale.config import Config
from neuscale.config.schema import DataConfig
from neuscale.data.formats.meta import PackedMeta
from neuscale.errors import UsageError
from neuscale.hardware import check_compiler
from neuscale.hub import hub_name, pinned
from neuscale.models.fused import OpsChoice, fuse
from neuscale.models.registry import create_model
from neuscale.models.weights import load_starting_weights, weights_path, weights_preprocessing
from neuscale.progress import Progress
from neuscale.runs.folder import best_checkpoint, checkpoint_paths, find_run
from neuscale.training.flops import training_flops
from neuscale.training.param_groups import freeze
from neuscale.untrusted import is_plain_name


@dataclass(frozen=True)
class BuiltModel:
    """A model, its frozen modules, and the FLOPs to train on one image (None if they cannot be counted)."""

    module: nn.Module
    frozen: list[nn.Module]
    flops: float | None


def build_model(
    config: Config, size: int, meta: PackedMeta, device: torch.device, ops: OpsChoice, progress: Progress
) -> BuiltModel:
    """Build the model for images of `size`×`size` pixels.

    It is initialised from `run.seed`, then from the pretrained weights of `model.weights`, and compiled
    in place if asked for, so that parameter names do not change. Raises UsageError or CheckpointError.
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


def starting_config(config: Config) -> tuple[Config, str | None]:
    """The configuration of a new run, completed from its starting weights, and a message about it.

    In `model.weights`, the name of a run becomes the path of its best checkpoint, and a name on the Hub is
    pinned to a commit. Images are normalised, resized and cropped as for the weights, if that is known and
    the fields of `data` do not set it.
    """
    model, weights = config.model, config.model.weights
    if weights is None:
        return config, None
    if weights != "imagenet" and is_plain_name(weights) and not weights_path(weights).exists():
        with suppress(UsageError):  # if there is no such run, loading the weights raises the error
            run = find_run(weights)
            paths = checkpoint_paths(run.checkpoints)
            if paths:
                best = best_checkpoint(run.checkpoints) or paths[-1]
                config = replace(config, model=replace(model, weights=str(best.absolute())))
    elif (name := hub_name(weights)) is not None:
        weights = str(pinned(name, weights_path(weights)))  # today's commit, for later starts
        config = replace(config, model=replace(model, weights=weights))
    found = weights_preprocessing(config.model)
    if config.data.mean:
        found = {name: value for name, value in found.items() if name not in ("mean", "std")}
    found = {name: value for name, value in found.items() if not getattr(config.data, name)}
    if not found:
        return config, None
    words = ", ".join(_words(name, value) for name, value in found.items())
    data: DataConfig = replace(config.data, **found)
    return replace(config, data=data), f"images are prepared as for these weights: {words}"


def _words(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else _numbers(value if isinstance(value, list) else [value])
    return f"data.{name} {text}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
