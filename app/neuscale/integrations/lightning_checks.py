"""What a recipe asks for and Lightning's Trainer decides or does otherwise: refused by name."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from neuscale.config import Config
from neuscale.data.order import check_shares
from neuscale.errors import UsageError
from neuscale.training.micro_batch import accumulation_steps

# train.precision in Lightning's words.
PRECISIONS = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def check_config(config: Config) -> None:
    """Raises UsageError for a field that only `neuscale train` follows, with Lightning's own way."""
    train = config.train
    ways = {
        "train.ema_decay": (train.ema_decay > 0, "its callback EMAWeightAveraging"),
        "train.patience": (train.patience is not None, "its callback EarlyStopping"),
        "train.profile": (train.profile, "Trainer(profiler=…)"),
        "run.time_limit": (config.run.time_limit is not None, "Trainer(max_time=…)"),
        "tracking.wandb": (config.tracking.wandb, "Trainer(logger=WandbLogger())"),
        "checkpoint.every_steps": (config.checkpoint.every_steps is not None, "its callback ModelCheckpoint"),
        "checkpoint.milestones": (bool(config.checkpoint.milestones), "its callback ModelCheckpoint"),
    }
    for name, (asked, way) in ways.items():
        if asked:
            raise UsageError(
                f"{name} is followed by 'neuscale train' only.",
                f"Leave it away; under Lightning use {way}.",
            )


def check_trainer(config: Config, trainer: Trainer) -> None:
    """Raises UsageError where the Trainer would not train what the recipe says."""
    train = config.train
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise UsageError(
            f"{type(trainer.strategy).__name__}: one device and DDP are supported.",
            'Use Trainer(strategy="ddp").',
        )
    if train.precision != "auto" and trainer.precision != PRECISIONS[train.precision]:
        raise UsageError(
            f"train.precision={train.precision}, and the Trainer's is {trainer.precision}.",
            f'Use Trainer(precision="{PRECISIONS[train.precision]}"), or leave train.precision away.',
        )
    if trainer.gradient_clip_val is not None:
        raise UsageError(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}): the recipe clips.",
            f"Leave it away, and set optim.clip_grad_norm={trainer.gradient_clip_val}.",
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise UsageError(
            "GradientAccumulationScheduler: a recipe has one global batch throughout.",
            "Leave it away; Trainer(accumulate_grad_batches=N) cuts the global batch into N parts.",
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
            f"Use Trainer(accumulate_grad_batches={wanted}), or leave train.micro_batch away.",
        )
