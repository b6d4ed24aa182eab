"""Evaluation: every sample exactly once, at any number of processes."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from neuscale.data.loader import Batch
from neuscale.evaluation.calibration import Calibration, CalibrationBins, calibration_of
from neuscale.progress import Progress


@dataclass(frozen=True)
class Evaluation:
    """`top1`, `top5` in 0 … 1; `loss`: mean cross-entropy in nats; `confusion`: counts [true, predicted]."""

    top1: float
    top5: float
    loss: float
    samples: int
    confusion: Tensor
    calibration: Calibration

    def per_class(self) -> list[float | None]:
        """Accuracy of each class; None for a class without samples."""
        counts = self.confusion.sum(1)
        return [
            float(self.confusion[i, i] / counts[i]) if counts[i] else None for i in range(len(self.confusion))
        ]

    def scalars(self) -> dict[str, float]:
        """The three numbers."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    progress: Progress,
    total: int,
) -> Evaluation:
    """Evaluates `model` on this process's `batches`; all processes get the numbers over all of them.

    `total`: samples that this process will see, for the progress. With fewer than five
    classes top-5 is 1.
    """
    confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
    top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro", validate_args=False)
    loss = SumMetric(nan_strategy="disable")  # by default it leaves NaN out: a diverged model had loss 0
    metrics = MetricCollection(
        {
            "confusion": confusion,
            "top5": top5,
            "loss": loss,
            "samples": SumMetric(),
            "bins": CalibrationBins(),
        },
        compute_groups=False,
    ).to(device)
    was_training = model.training
    model.eval()
    with progress.task("evaluating", total, "img") as task:
        for batch in batches:
            with autocast():
                logits = model(batch.images)
            logits = logits.float()
            metrics["confusion"].update(logits, batch.labels)
            metrics["top5"].update(logits, batch.labels)
            metrics["bins"].update(logits, batch.labels)
            metrics["loss"].update(F.cross_entropy(logits, batch.labels, reduction="sum"))
            metrics["samples"].update(len(batch.labels))
            task.advance(len(batch.labels))
    model.train(was_training)
    with warnings.catch_warnings():  # a process may have no share of a tiny split
        warnings.filterwarnings("ignore", message=".*compute.*before the.*update.*")
        result = metrics.compute()
    samples = int(result["samples"])
    counts = result["confusion"].cpu()
    return Evaluation(
        top1=float(counts.diagonal().sum()) / samples,
        top5=float(result["top5"]),
        loss=float(result["loss"]) / samples,
        samples=samples,
        confusion=counts,
        calibration=calibration_of(result["bins"]),
    )
