"""Types of user-defined parts, for type checkers: augmentation, data source, loss, metric and schedule.

    from neuscale.protocols import Metric

Nothing has to inherit from these protocols: any function or object with the same signature is accepted.
Models and optimizers are torch's own classes (`torch.nn.Module`, `torch.optim.Optimizer`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Augmentation", "DataSource", "Loss", "Metric", "Schedule"]


class Augmentation(Protocol):
    """Augmentation for `augment.function`, the last step before normalisation."""

    def __call__(self, images: "Tensor", draws: "Tensor", /) -> "Tensor":
        """Augment a batch: uint8 [B, C, H, W] → uint8 of the same shape.

        `draws`: uniform random numbers in [0, 1), float64 [B, augment.function_draws], computed from seed,
        epoch and position. Use them as the only source of randomness, so that runs are reproducible.
        """


class DataSource(Protocol):
    """Data source for `data.dataset`: its class or function is called with `split="train"` and `split="val"`.

    The result may have an attribute `classes`, the class names that numeric labels are indices of, and a
    length. If the class or function has a true attribute `has_test`, it is also called with `split="test"`.
    """

    def __iter__(self) -> Iterator[tuple[Any, str | int]]:
        """Iterate over (image, label): a PIL image or uint8 [H, W] or [H, W, 3]; a string or an integer."""


class Loss(Protocol):
    """Loss for `train.loss`."""

    def __call__(self, logits: "Tensor", targets: "Tensor", /) -> "Tensor":
        """Return the mean loss over the images, or one loss per image, [B].

        `logits` and `targets` are float32 [B, classes]. `targets` contains probabilities, after label
        smoothing and mixing (Mixup, CutMix); for multi-label data, one value in 0 … 1 per class.
        """


class Metric(Protocol):
    """Metric for `eval.functions`. Set the attribute `higher_is_better = False` if smaller is better."""

    def __call__(self, logits: "Tensor", targets: "Tensor", /) -> Any:
        """Return the value of the metric: a number, or a tensor with one element.

        `logits`, float32 [N, classes], are for all images of a split, in any order. `targets` are int64 [N],
        or bool [N, classes] for multi-label data. Both are on the CPU.
        """


class Schedule(Protocol):
    """Learning-rate schedule for `optim.function`. It replaces the built-in schedule, including warm-up."""

    def __call__(self, *, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """Return the factor on `optim.lr` at `step`, counted from 0; it must be finite and at least 0."""
