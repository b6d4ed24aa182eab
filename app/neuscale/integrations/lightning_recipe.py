"""A recipe for Lightning: its configuration, and the arguments of a Trainer."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from neuscale.config import Config, compose_config, config_from_yaml
from neuscale.data.order import check_shares
from neuscale.integrations.lightning_checks import PRECISIONS
from neuscale.training.device import resolve_device, resolve_precision

Recipe = Config | Sequence[str] | Mapping[str, Any]
"""A configuration: a Config, words as on the command line, or what a Lightning checkpoint holds of one."""


def trainer_options(recipe: Recipe, devices: int = 1) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that train as `neuscale train` would, on `devices` processes."""
    config = recipe_config(recipe)
    train, kind = config.train, resolve_device(config.run.device)
    check_shares(train.global_batch_size, devices)
    precision = resolve_precision(train.precision, kind)
    share = train.global_batch_size // devices
    micro_batch = share if train.micro_batch == "auto" else int(train.micro_batch)
    return {
        "accelerator": kind,
        "devices": devices,
        "strategy": "ddp" if devices > 1 else "auto",
        "precision": PRECISIONS[precision],
        "max_epochs": train.epochs,
        "max_steps": train.max_steps if train.max_steps is not None else -1,
        "accumulate_grad_batches": max(1, share // micro_batch),
        "check_val_every_n_epoch": config.eval.every_epochs,
        "log_every_n_steps": train.log_every_steps,
        "deterministic": config.run.deterministic or None,
    }


def recipe_config(recipe: Recipe) -> Config:
    """The typed configuration of a recipe. Raises UsageError."""
    if isinstance(recipe, Config):
        return recipe
    if isinstance(recipe, Mapping):
        return config_from_yaml(yaml.safe_dump(dict(recipe)), [], "the checkpoint's configuration")
    return compose_config([recipe] if isinstance(recipe, str) else list(recipe))
