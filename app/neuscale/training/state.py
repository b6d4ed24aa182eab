"""What a run is besides its configuration: all that a checkpoint holds, and nothing that can be computed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuscale.models.weights import load_weights
from neuscale.training.checkpoint import Checkpoint
from neuscale.training.ema import WeightAverage


@dataclass
class TrainingState:
    """`step`: steps done. `seconds`: of training. `stale`: evaluations since the best one.

    `parts`: micro-batches per share. `window`: sums since the last point of the curves, over all
    processes and `window_steps` steps (None: not in an older checkpoint). `scaler`: the gradient
    scaler's state with fp16.
    """

    step: int = 0
    best_top1: float = -1.0
    stale: int = 0
    seconds: float = 0.0
    parts: int = 1
    window: Tensor | None = None
    window_steps: int | None = None
    scaler: dict[str, Any] | None = None

    def content(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
    ) -> dict[str, Any]:
        """What is saved: the model's `weights`, their `average`, and the `training` state."""
        return {
            "weights": model.state_dict(),
            "average": average.state if average is not None else None,
            "training": {
                "optimizer": optimizer.state_dict(),
                "scaler": self.scaler,
                "window": self.window,
                "window_steps": self.window_steps,
                "best_top1": self.best_top1,
                "stale": self.stale,
                "train_seconds": self.seconds,
                "parts": self.parts,
                "average_updates": average.updates if average is not None else 0,
            },
        }

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
    ) -> "TrainingState":
        """The state in a checkpoint, with the model, the optimizer and the average put back."""
        saved = checkpoint.training_state()
        load_weights(model, checkpoint.weights(), str(checkpoint.path))
        optimizer.load_state_dict(saved["optimizer"])
        if average is not None:
            averaged = checkpoint.average()
            if averaged is None:  # train.ema_decay was given in the middle of the run
                averaged = {name: value.detach() for name, value in model.state_dict().items()}
            average.load(averaged, saved["average_updates"])
        return cls(
            step=checkpoint.step,
            best_top1=saved["best_top1"],
            stale=saved["stale"],
            seconds=saved["train_seconds"],
            parts=saved["parts"],
            window=saved["window"],
            window_steps=saved.get("window_steps"),
            scaler=saved["scaler"],
        )
