"""The learning rate as a function of the step: nothing to save, nothing to step once too often."""

import math

import torch

from neuscale.config.model_options import OptimConfig


def lr_at(config: OptimConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of a step: linear warm-up, then `config.schedule`.

    Half a cosine (Loshchilov & Hutter 2017) or a line down to `final_lr_ratio` of the peak, a
    staircase that falls by `step_factor` at the end of each of `step_epochs`, or constant.
    """
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    floor = config.final_lr_ratio
    if config.schedule == "cosine":
        return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    if config.schedule == "linear":
        return config.lr * (floor + (1 - floor) * (1 - progress))
    if config.schedule == "step":
        falls = sum(step >= epoch * steps_per_epoch for epoch in config.step_epochs)
        return config.lr * config.step_factor**falls
    return config.lr


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all groups the learning rate, each times its layers' `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
