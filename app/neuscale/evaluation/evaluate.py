"""Evaluation of a classifier on a split: every sample exactly once, on any number of ranks."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from neuscale.config.schema import DataConfig
from neuscale.data.datasets import Dataset
from neuscale.data.formats.meta import PackedMeta
from neuscale.data.loaders.choose import choose_loader, create_loader
from neuscale.data.loaders.loader import Batch
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.evaluation.calibration import BINS, Calibration, bin_sums, calibration_of
from neuscale.evaluation.multi_label import MultiLabelEvaluation, evaluate_scores
from neuscale.evaluation.own_metrics import OwnMetrics, SeenOutputs
from neuscale.progress import Progress, Task


@dataclass(frozen=True)
class Evaluation:
    """`top1`, `top5` in 0 … 1; `loss`: mean cross-entropy in nats; `confusion`: counts [true, predicted].

    `own`: the values of `eval.functions`, by name.
    """

    top1: float
    top5: float
    loss: float
    samples: int
    confusion: Tensor
    calibration: Calibration
    own: dict[str, float] = field(default_factory=dict)

    def per_class(self) -> list[float | None]:
        """Accuracy of each class; None for a class without samples."""
        counts = self.confusion.sum(1)
        return [
            float(self.confusion[i, i] / counts[i]) if counts[i] else None for i in range(len(self.confusion))
        ]

    @property
    def headline(self) -> tuple[str, float]:
        """Name and value of the main metric."""
        return "top-1", self.top1

    @property
    def balanced_accuracy(self) -> float:
        """The mean of `per_class`, over the classes that have samples."""
        found = [accuracy for accuracy in self.per_class() if accuracy is not None]
        return sum(found) / len(found)

    @property
    def macro_f1(self) -> float:
        """The mean of 2 TP / (2 TP + FP + FN) over the classes that have samples or are predicted."""
        hits = self.confusion.diagonal().double()
        named = self.confusion.sum(0) + self.confusion.sum(1)
        return float((2 * hits / named)[named > 0].mean())

    def scalars(self) -> dict[str, float]:
        """The metrics that are logged, by name."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            **self.own,
        }


AnyEvaluation = Evaluation | MultiLabelEvaluation


def evaluated_labels(meta: PackedMeta, device: torch.device) -> int | Tensor:
    """The argument `labels` of `evaluate` for a data set."""
    if meta.label_sets is None:
        return meta.num_classes
    return torch.from_numpy(meta.label_table()).to(device)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    labels: int | Tensor,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    progress: Progress,
    total: int,
    metrics: OwnMetrics | None = None,
) -> AnyEvaluation:
    """Evaluate `model` on this rank's `batches`; all ranks get the metrics over all batches.

    `labels`: the number of classes, or, if an image may have several, bool [labels, classes]: the
    classes of each label. `total`: number of samples on this rank, for the progress. With fewer than
    five classes top-5 is 1. `metrics`: user-defined metrics, which get all logits at once.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), progress.task("evaluating", total, "img") as task:
            seen, outputs = SeenOutputs(), _outputs(model, batches, autocast, task)
            if metrics:
                outputs = seen.watch(outputs)
            result: AnyEvaluation
            if isinstance(labels, Tensor):
                result = _evaluate_several(outputs, labels, device)
            else:
                result = _evaluate_one(outputs, labels, device)
        return replace(result, own=_own(metrics, seen, labels, device, progress)) if metrics else result
    finally:
        model.train(was_training)


def _own(
    metrics: OwnMetrics, seen: SeenOutputs, labels: int | Tensor, device: torch.device, progress: Progress
) -> dict[str, float]:
    classes = labels.shape[1] if isinstance(labels, Tensor) else labels
    # A rank may have no images, and takes part with no rows.
    rows = _of_all_processes(torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *seen.labels]))
    logits = _of_all_processes(torch.cat([torch.zeros(0, classes, device=device), *seen.logits]))
    targets = labels[rows] if isinstance(labels, Tensor) else rows
    return metrics.values(logits.cpu(), targets.cpu(), progress)


def _outputs(
    model: nn.Module,
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[Any]],
    task: Task,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits float32 [B, classes] and labels [B] of each batch."""
    for batch in batches:
        with autocast():
            logits = model(batch.images)
        yield logits.float(), batch.labels
        task.advance(len(batch.labels))


def _evaluate_several(
    outputs: Iterable[tuple[Tensor, Tensor]], table: Tensor, device: torch.device
) -> MultiLabelEvaluation:
    logits = [torch.zeros(0, table.shape[1], device=device)]
    labels = [torch.zeros(0, dtype=torch.int64, device=device)]
    for batch_logits, batch_labels in outputs:
        logits.append(batch_logits)
        labels.append(batch_labels)
    scores, targets = _of_all_processes(torch.cat(logits)), table[_of_all_processes(torch.cat(labels))]
    loss = F.binary_cross_entropy_with_logits(scores, targets.float())
    return evaluate_scores(scores.cpu(), targets.cpu(), float(loss))


def _evaluate_one(
    outputs: Iterable[tuple[Tensor, Tensor]], num_classes: int, device: torch.device
) -> Evaluation:
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    in_top5, samples = torch.zeros(2, dtype=torch.int64, device=device)
    loss, bins = torch.zeros((), device=device), torch.zeros(3, BINS, device=device)
    for logits, labels in outputs:
        cells = labels * num_classes + logits.argmax(1)
        confusion += torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)
        top5 = logits.topk(min(5, num_classes)).indices
        in_top5 += (top5 == labels[:, None]).any(1).sum()
        bins += bin_sums(logits, labels)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        samples += len(labels)
    counts, in_top5, loss, bins, samples = map(_over_processes, (confusion, in_top5, loss, bins, samples))
    counts, count = counts.cpu(), int(samples)
    return Evaluation(
        top1=float(counts.diagonal().sum()) / count,
        top5=float(in_top5.float() / count),
        loss=float(loss) / count,
        samples=count,
        confusion=counts,
        calibration=calibration_of(bins),
    )


def _over_processes(value: Tensor) -> Tensor:
    """The sum of `value` over all ranks, added in rank order."""
    if not dist.is_initialized():
        return value
    values = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(values, value)
    return torch.stack(values).sum(0)


def _of_all_processes(rows: Tensor) -> Tensor:
    """The rows [n, …] of all ranks, concatenated in rank order; n may differ."""
    if not dist.is_initialized():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])


def evaluate_module(
    model: nn.Module, data: Dataset, split: str, batch_size: int, section: DataConfig, progress: Progress
) -> AnyEvaluation:
    """Evaluate `model` on its own device, on normalised images of `data`, resized as `section` says.

    In a process group each rank evaluates its share. Raises UsageError if the model does not return one
    score for each class.
    """
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    rank = Rank.current()
    loader = create_loader(choose_loader(section, data, place), section, data, split, place, rank)
    _check_logits(model, data, loader.size, place)
    return evaluate(
        model,
        loader.evaluation(batch_size),
        evaluated_labels(data.meta, place),
        place,
        nullcontext,
        progress,
        total=len(loader) // rank.world_size,
    )


def normalized_as(data: Dataset, trained_on: Dataset) -> Dataset:
    """`data` with mean and std of `trained_on`. Raises UsageError if their classes or channels differ."""
    if (data.meta.label_sets is None) != (trained_on.meta.label_sets is None):
        raise UsageError(
            f"of {data.meta.name} and {trained_on.meta.name}, which the run was trained on, one has several"
            " labels an image and the other has one.",
            "Prepare both alike.",
        )
    if (data.meta.classes, data.meta.channels) != (trained_on.meta.classes, trained_on.meta.channels):
        raise UsageError(
            f"{data.meta.name} has other classes or channels than {trained_on.meta.name},"
            " which the run was trained on.",
            "Evaluate it on data with the same classes, in the same order.",
        )
    view = copy(data)
    view.meta = replace(data.meta, mean=trained_on.meta.mean, std=trained_on.meta.std)
    return view


def _check_logits(model: nn.Module, data: Dataset, size: int, place: torch.device) -> None:
    """Raise UsageError if the shape of the model's output does not fit the classes of `data`."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        shape = tuple(model(torch.zeros(1, data.meta.channels, size, size, device=place)).shape)
    model.train(was_training)
    if shape != (1, data.meta.num_classes):
        raise UsageError(
            f"the model returned shape {shape}; expected (1, {data.meta.num_classes}), one score for each"
            f" class of {data.meta.name}.",
            "Give it a head for that many classes: create_model(…, data=data).",
        )


class FlipAveraged(nn.Module):
    """Test-time augmentation: the mean of the probabilities for an image and for its mirror image.

    [B, C, H, W] → logits [B, classes]: log-probabilities, or log-odds if `several_labels` are possible.
    """

    def __init__(self, model: nn.Module, several_labels: bool = False) -> None:
        super().__init__()
        self.model, self.several_labels = model, several_labels

    def forward(self, images: Tensor) -> Tensor:
        here, mirrored = self.model(images).float(), self.model(images.flip(-1)).float()
        if self.several_labels:
            yes, no = (
                torch.logaddexp(F.logsigmoid(sign * here), F.logsigmoid(sign * mirrored)) for sign in (1, -1)
            )
            return yes - no
        return torch.logaddexp(here.log_softmax(1), mirrored.log_softmax(1)) - torch.log(torch.tensor(2.0))


def share_running_statistics(model: nn.Module) -> None:
    """Broadcast the running means and variances (batch norm) of rank 0 to all ranks.

    Each rank computes them from its own share of the batches, and training does not read them.
    Checkpoints contain those of rank 0, so after the broadcast all ranks evaluate the saved
    model. Since rank 0 never uses the others', a run resumed at any step is bitwise identical.
    DistributedDataParallel would broadcast before each forward pass, and so miss the last step.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            for buffer in module.buffers(recurse=False):
                dist.broadcast(buffer, src=0)
