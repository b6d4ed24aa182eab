"""Types of the parts that users bring: five protocols for a type checker, and nothing to inherit from.

    from neuscale.protocols import Metric

Any function or object of this form will do; models and optimizers are torch's own classes.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Augmentation", "DataSource", "Loss", "Metric", "Schedule"]


class Augmentation(Protocol):
    """`augment.function`, the last step before normalisation."""

    def __call__(self, images: "Tensor", draws: "Tensor", /) -> "Tensor":
        """uint8 [B, C, H, W] → uint8 of the same shape.

        `draws`: float64 [B, augment.function_draws] in 0 … 1, functions of seed, epoch and position: what is
        random follows from them alone.
        """


class DataSource(Protocol):
    """`data.dataset`: what its class or function gives for `split="train"` and `split="val"`.

    It may have `classes`, the names that labels count in, and a length. Where its class has `has_test`, it is
    asked for "test", too.
    """

    def __iter__(self) -> Iterator[tuple[Any, str | int]]:
        """Pairs of an image, PIL's or uint8 [H, W] or [H, W, 3], and its label, a text or a number."""


class Loss(Protocol):
    """`train.loss`."""

    def __call__(self, logits: "Tensor", targets: "Tensor", /) -> "Tensor":
        """Both float32 [B, classes]; targets are probabilities, smoothed and mixed, or several labels.

        The mean over the images, or one value for each, [B].
        """


class Metric(Protocol):
    """One of `eval.functions`. With `higher_is_better = False` it is better the smaller it is."""

    def __call__(self, logits: "Tensor", targets: "Tensor", /) -> Any:
        """All images of a split, in any order: float32 [N, classes], and int64 [N] or bool [N, classes].

        A number, or a tensor of one.
        """


class Schedule(Protocol):
    """`optim.function`."""

    def __call__(self, *, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The share of `optim.lr` in a step, counted from 0; a finite number, 0 or more."""
