"""A recipe for Lightning: its configuration, arguments for the Trainer, and checks that both agree."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from neuscale.config import Config, compose_config, config_from_yaml
from neuscale.config.schema import TENSORBOARD
from neuscale.data.sampling import check_shares
from neuscale.distributed.accelerator import resolve_device, resolve_precision
from neuscale.errors import UsageError
from neuscale.project.targets import project_modules
from neuscale.project.trust import check_targets
from neuscale.training.accumulation import accumulation_steps
from neuscale.training.build import starting_config

Recipe = Config | Sequence[str] | Mapping[str, Any]


"""A configuration: a Config, words as on the command line, or what a Lightning checkpoint holds of one."""


def trainer_options(recipe: Recipe, devices: int = 1) -> dict[str, Any]:
    """Arguments for Lightning's Trainer to train like `neuscale train`, on `devices` ranks."""
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
        return starting_config(recipe)[0]
    if isinstance(recipe, Mapping):
        where = "the checkpoint's configuration"
        config = config_from_yaml(yaml.safe_dump(dict(recipe)), [], where)
        check_targets(asdict(config), project_modules(), where)  # a checkpoint may come from anybody
        return config
    return starting_config(compose_config([recipe] if isinstance(recipe, str) else list(recipe)))[0]


# Lightning's names of train.precision.
PRECISIONS = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def check_config(config: Config) -> None:
    """Raise UsageError for a field that only `neuscale train` supports, naming Lightning's alternative."""
    train = config.train
    ways = {
        "train.ema_decay": (train.ema_decay > 0, "its callback EMAWeightAveraging"),
        "train.patience": (train.patience is not None, "its callback EarlyStopping"),
        "train.profile": (train.profile, "Trainer(profiler=…)"),
        "run.time_limit": (config.run.time_limit is not None, "Trainer(max_time=…)"),
        "tracking.trackers": (
            any(name != TENSORBOARD for name in config.tracking.trackers),
            "Trainer(logger=WandbLogger())",
        ),
        "eval.functions": (bool(config.eval.functions), "a metric of its module, in validation_step"),
        "checkpoint.every_steps": (config.checkpoint.every_steps is not None, "its callback ModelCheckpoint"),
        "checkpoint.milestones": (bool(config.checkpoint.milestones), "its callback ModelCheckpoint"),
    }
    for name, (asked, way) in ways.items():
        if asked:
            raise UsageError(
                f"{name} is followed by 'neuscale train' only.",
                f"Remove it; under Lightning use {way}.",
            )


def check_trainer(config: Config, trainer: Trainer) -> None:
    """Raise UsageError if the Trainer's settings contradict the recipe."""
    train = config.train
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise UsageError(
            f"{type(trainer.strategy).__name__}: one device and DDP are supported.",
            'Use Trainer(strategy="ddp").',
        )
    if train.precision != "auto" and trainer.precision != PRECISIONS[train.precision]:
        raise UsageError(
            f"train.precision={train.precision}, and the Trainer's is {trainer.precision}.",
            f'Use Trainer(precision="{PRECISIONS[train.precision]}"), or remove train.precision.',
        )
    if trainer.gradient_clip_val is not None:
        raise UsageError(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}): the recipe clips.",
            f"Remove it, and set optim.clip_grad_norm={trainer.gradient_clip_val}.",
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise UsageError(
            "GradientAccumulationScheduler: a recipe has one global batch throughout.",
            "Remove it; Trainer(accumulate_grad_batches=N) cuts the global batch into N parts.",
        )
    _check_parts(config, trainer)


def _check_parts(config: Config, trainer: Trainer) -> None:
    train, parts = config.train, trainer.accumulate_grad_batches
    check_shares(train.global_batch_size, trainer.world_size)
    share = train.global_batch_size // trainer.world_size
    if share % parts:
        raise UsageError(
            f"a process's {share} images of a step do not divide into"
            f" Trainer(accumulate_grad_batches={parts}).",
            "The global batch stays as it is; choose a number that divides them.",
        )
    wanted = accumulation_steps(train.micro_batch, train.global_batch_size, trainer.world_size)
    if train.micro_batch != "auto" and wanted != parts:
        raise UsageError(
            f"train.micro_batch={train.micro_batch} cuts a process's {share} images into {wanted} parts,"
            f" and the Trainer accumulates {parts}.",
            f"Use Trainer(accumulate_grad_batches={wanted}), or remove train.micro_batch.",
        )
