"""Instrumented training: records what is computed, and measures times by a fake clock."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from neuscale.data.loaders.loader import Batch
from neuscale.training import loss as loss_module
from neuscale.training import metrics_logger, trainer
from neuscale.training.tracking.tracker import Tracker

BATCH = 12
WAIT, COMPUTE, EVALUATION = 0.25, 1.0, 1000.0  # seconds; the first two are multiplied by (step + 1)


@dataclass
class Watched:
    """Logits and labels of each step's micro-batches and its learning rate, by the step's number.

    Step i (from 0) waits for data for (i + 1) / 4 seconds and computes for i + 1 seconds.
    """

    logits: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    images: list[Tensor] = field(default_factory=list)
    seconds: float = 50.0
    pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def means(self, steps: range) -> tuple[float, float]:
        """Mean loss and accuracy over all images of these steps, image by image."""
        losses, right = [], []
        for number in steps:
            for logits, labels in self.logits[number]:
                for image, label in zip(logits.double(), labels.tolist(), strict=True):
                    losses.append(float(image.exp().sum().log() - image[label]))
                    right.append(int(image.argmax()) == label)
        assert len(losses) == BATCH * len(steps)
        return sum(losses) / len(losses), sum(right) / len(right)


def watch(patch: pytest.MonkeyPatch) -> Watched:
    """Record the trainings of this process from here on."""
    watched = Watched()
    real_loss, real_step = loss_module.batch_loss, trainer.Trainer.forward_backward
    real_loader, real_evaluate, real_images = trainer.create_loader, trainer.evaluate, Tracker.images

    def loss(logits: Tensor, batch: Any, *settings: Any) -> Tensor:
        watched.pending.append((logits.detach().clone(), batch.labels.clone()))
        return real_loss(logits, batch, *settings)

    def forward_backward(self: trainer.Trainer, batches: list[Batch], synchronise: bool = True) -> Tensor:
        number = self.step
        watched.pending = []
        watched.rates[number] = self.optimizer.param_groups[0]["lr"]
        sums = real_step(self, batches, synchronise)
        watched.logits[number] = watched.pending
        watched.seconds += COMPUTE * (number + 1)
        return sums

    def loader(*words: Any) -> Any:
        made = real_loader(*words)
        batches = made.training

        def training(
            augment: Any, seed: int, epoch: int, first: int, steps: int, *rest: Any
        ) -> Iterator[Any]:
            for i, batch in enumerate(batches(augment, seed, epoch, first, steps, *rest)):
                watched.seconds += WAIT * (5 * epoch + first + i + 1)  # five steps per epoch
                yield batch

        made.training = training
        return made

    def evaluate(*words: Any, **options: Any) -> Any:
        watched.seconds += EVALUATION
        return real_evaluate(*words, **options)

    def images(self: Tracker, shown: Tensor, of: Any) -> None:
        watched.images.append(shown.clone())
        real_images(self, shown, of)

    patch.setattr(loss_module, "batch_loss", loss)
    patch.setattr(trainer.Trainer, "forward_backward", forward_backward)
    patch.setattr(trainer, "create_loader", loader)
    patch.setattr(trainer, "evaluate", evaluate)
    patch.setattr(Tracker, "images", images)
    patch.setattr(metrics_logger, "time", SimpleNamespace(perf_counter=lambda: watched.seconds))
    torch.set_num_threads(1)
    return watched


def seconds_of(steps: range) -> float:
    """Return the seconds that these steps take on the fake clock."""
    return sum((WAIT + COMPUTE) * (number + 1) for number in steps)
