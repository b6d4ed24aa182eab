"""Learning rate as a function of the step, without scheduler state."""

import json
import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from neuscale.config.model_options import OptimConfig
from neuscale.errors import UsageError
from neuscale.project.targets import call, make
from neuscale.protocols import Schedule


@dataclass(frozen=True)
class Span:
    """The steps from `start` to `end` over which a schedule runs; it has a warm-up only if it starts at 0."""

    start: int
    end: int

    def state_dict(self) -> dict[str, int]:
        """State for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, state: Any, total_steps: int) -> "Span":
        """The span in a checkpoint's state; without one (an older version), from 0 to `total_steps`."""
        return cls(int(state["start"]), int(state["end"])) if state is not None else cls(0, total_steps)

    def extended(self, config: OptimConfig, step: int, total_steps: int) -> "Span":
        """The span of a run that resumes at `step` with a new `total_steps`, according to `on_extend`."""
        if config.on_extend == "hold":
            return self
        return Span(step, total_steps) if config.on_extend == "restart" else Span(self.start, total_steps)


def lr_at(config: OptimConfig, step: int, steps_per_epoch: int, span: Span) -> float:
    """Learning rate at a step: linear warm-up, then `config.schedule`, over the steps of `span`.

    The schedule is half a cosine (Loshchilov & Hutter 2017) or a line down to `final_lr_ratio` of the peak,
    held after the end of the span; a staircase that falls by `step_factor` at the end of each of
    `step_epochs`; or constant. A user-defined function replaces all of this, including the warm-up.
    """
    if config.function is not None:
        own = _own_schedule(json.dumps(config.function, sort_keys=True))
        named = {"step": step, "total_steps": span.end, "steps_per_epoch": steps_per_epoch}
        share = call(own, "optim.function", **named)
        if not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise UsageError(
                f"optim.function: at step {step} it gives {share!r}.", "Give a share of optim.lr, 0 or more."
            )
        return config.lr * share
    length, step = span.end - span.start, step - span.start
    warmup = min(round(config.warmup_epochs * steps_per_epoch), length) if span.start == 0 else 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, length - warmup))
    floor = config.final_lr_ratio
    if config.schedule == "cosine":
        return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    if config.schedule == "linear":
        return config.lr * (floor + (1 - floor) * (1 - progress))
    if config.schedule == "step":
        falls = sum(step >= epoch * steps_per_epoch for epoch in config.step_epochs)
        return config.lr * config.step_factor**falls
    return config.lr


@cache
def _own_schedule(spec: str) -> Schedule:
    made: Schedule = make(json.loads(spec), "optim.function")
    return made


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, each multiplied by its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
