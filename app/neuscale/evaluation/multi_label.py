"""Evaluation of a model whose images have several labels, or none: each class is a question of its own."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

# A class is predicted where its probability is at least this much.
THRESHOLD = 0.5


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """`loss`: mean binary cross-entropy in nats, over images and classes; `exact`: images with all right.

    `average_precision`: of each class, None for a class of which there is no image. `hits`, `predicted`,
    `actual`: images of each class that are predicted and right, predicted, and of the class: int64 [classes].
    `own`: the numbers of `eval.functions`, by name.
    """

    loss: float
    samples: int
    exact: float
    average_precision: list[float | None]
    hits: Tensor
    predicted: Tensor
    actual: Tensor
    own: dict[str, float] = field(default_factory=dict)

    @property
    def mean_average_precision(self) -> float:
        """The mean of `average_precision`, over the classes of which there are images."""
        found = [value for value in self.average_precision if value is not None]
        return sum(found) / len(found) if found else 0.0

    @property
    def macro_f1(self) -> float:
        """The mean of 2 TP / (2 TP + FP + FN) over the classes that have images or are predicted."""
        named = (self.predicted + self.actual).double()
        known = named > 0
        return float((2 * self.hits / named)[known].mean()) if known.any() else 0.0

    @property
    def micro_f1(self) -> float:
        """2 TP / (2 TP + FP + FN) of all classes together."""
        named = int(self.predicted.sum() + self.actual.sum())
        return 2 * int(self.hits.sum()) / named if named else 0.0

    @property
    def headline(self) -> tuple[str, float]:
        """The number that a run is known by, and its name."""
        return "mAP", self.mean_average_precision

    def per_class(self) -> list[float | None]:
        """`average_precision`."""
        return self.average_precision

    def scalars(self) -> dict[str, float]:
        """The numbers that are logged, by their names."""
        return {
            "map": self.mean_average_precision,
            "loss": self.loss,
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
            "exact": self.exact,
            **self.own,
        }


def evaluate_scores(logits: Tensor, targets: Tensor, loss: float) -> MultiLabelEvaluation:
    """The evaluation of float logits [N, classes] by `targets` bool [N, classes]; `loss`: their mean."""
    chosen = logits >= torch.logit(torch.tensor(THRESHOLD))
    return MultiLabelEvaluation(
        loss=loss,
        samples=len(logits),
        exact=float((chosen == targets).all(1).double().mean()),
        average_precision=average_precisions(logits, targets),
        hits=(chosen & targets).sum(0),
        predicted=chosen.sum(0),
        actual=targets.sum(0),
    )


def average_precisions(scores: Tensor, targets: Tensor) -> list[float | None]:
    """Of each class the sum of precision × rise of recall over the distinct scores, from the highest down.

    scores [N, classes], targets bool [N, classes]; None for a class without an image. As scikit-learn's
    `average_precision_score`: equal scores count together, and nothing is interpolated.
    """
    found: list[float | None] = []
    for of_class, right in zip(scores.double().T, targets.T, strict=True):
        total = int(right.sum())
        if not total:
            found.append(None)
            continue
        ordered, places = of_class.sort(descending=True, stable=True)
        hits = right[places].cumsum(0).double()
        last = torch.ones(len(ordered), dtype=torch.bool, device=scores.device)  # of equal scores
        last[:-1] = ordered[1:] != ordered[:-1]
        precision = (hits / torch.arange(1, len(hits) + 1, device=scores.device))[last]
        recall = hits[last] / total
        rise = torch.diff(recall, prepend=recall.new_zeros(1))
        found.append(float((precision * rise).sum()))
    return found
