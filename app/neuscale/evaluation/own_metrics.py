"""User-defined metrics: functions of the logits and labels of all images of a split."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neuscale.config.schema import EvalConfig
from neuscale.data.formats.meta import PackedMeta
from neuscale.errors import UsageError
from neuscale.progress import Progress
from neuscale.project.targets import call, make
from neuscale.protocols import Metric

_FIELD = "eval.functions"

# Names of the built-in metrics for images with one label, and for images that may have several labels.
OF_ONE = ("top1", "top5", "loss", "balanced_accuracy", "macro_f1")
OF_SEVERAL = ("map", "loss", "macro_f1", "micro_f1", "exact")

# Names of other values beside the metrics in a run's files and in the output of commands.
_RESERVED = (
    *("split", "step", "rest_steps", "samples", "classes", "own", "run", "checkpoint", "weights", "tta"),
    *("confusion", "calibration", "average_precision", "hits", "predicted", "actual", "per_class", "ece"),
    *("corruptions", "corrupted_top1", "corrupted_map", "latency"),
)


def check_metric_names(metric: str, own: Mapping[str, Any]) -> None:
    """Raise UsageError for a user's metric with a reserved or invalid name, or an unknown `eval.metric`."""
    for name in own:
        if name in ("auto", *OF_ONE, *OF_SEVERAL, *_RESERVED) or not name.isidentifier():
            why = "is a name of the program" if name.isidentifier() else "is not a valid name"
            raise UsageError(
                f"{_FIELD}.{name}: {why}.",
                "Give it another name, of letters, digits and underscores.",
            )
    known = list(dict.fromkeys(["auto", *OF_ONE, *OF_SEVERAL, *own]))
    if metric not in known:
        raise UsageError(f"eval.metric={metric}: expected one of {', '.join(known)}.")


class OwnMetrics:
    """The metrics of `eval.functions`, instantiated and called once as a check. Raises UsageError.

    Each is called with logits, float32 [N, classes], and targets, int64 [N], or bool [N, classes] if images
    may have several labels; both on the CPU, with the images in any order. It returns a number.
    """

    def __init__(self, specs: Mapping[str, Any], classes: int, several_labels: bool) -> None:
        self._metrics: dict[str, Metric] = {
            name: make(spec, f"{_FIELD}.{name}") for name, spec in specs.items()
        }
        targets = torch.arange(2 * classes) % classes
        logits = torch.nn.functional.one_hot(targets, classes).float()
        for name in self._metrics:
            self._value(name, logits, logits.bool() if several_labels else targets)

    @classmethod
    def of(cls, config: EvalConfig, meta: PackedMeta) -> "OwnMetrics":
        """The metrics of a configuration, for a data set."""
        return cls(config.functions, meta.num_classes, meta.label_sets is not None)

    def __bool__(self) -> bool:
        return bool(self._metrics)

    @property
    def falling(self) -> list[str]:
        """Metrics for which smaller is better: `higher_is_better` is False, as in torchmetrics."""
        return [
            name
            for name, metric in self._metrics.items()
            if getattr(metric, "higher_is_better", True) is False
        ]

    def values(self, logits: Tensor, targets: Tensor, progress: Progress) -> dict[str, float]:
        """Values by name, those of rank 0 on all ranks; one that is not finite is left out with a warning."""
        found = torch.tensor(
            [self._value(name, logits, targets) for name in self._metrics], dtype=torch.float64
        )
        if dist.is_initialized() and dist.get_world_size() > 1:
            shared = found.to(torch.device("cuda") if dist.get_backend() == "nccl" else "cpu")
            dist.broadcast(shared, src=0)
            found = shared.cpu()
        values = dict(zip(self._metrics, found.tolist(), strict=True))
        for name, value in values.items():
            if not math.isfinite(value):
                progress.warning(f"{_FIELD}.{name} is {value} here, and is left out")
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def _value(self, name: str, logits: Tensor, targets: Tensor) -> float:
        metric = self._metrics[name]
        if hasattr(metric, "reset"):  # a torchmetrics metric would accumulate all images otherwise
            call(metric.reset, f"{_FIELD}.{name}")
        value = call(metric, f"{_FIELD}.{name}", logits, targets)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"{_FIELD}.{name}: gave {type(value).__name__}, which is no number.",
                "It is called with logits [N, classes] and targets, and gives one number.",
            ) from error


class SeenOutputs:
    """Collected outputs, for metrics that need all of them at once."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def watch(self, outputs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the same outputs and keep them."""
        for logits, labels in outputs:
            self.logits.append(logits)
            self.labels.append(labels)
            yield logits, labels
