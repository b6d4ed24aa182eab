"""Multi-label evaluation: images have any number of labels, and each class is a binary decision."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

# A class is predicted if its probability is at least this.
THRESHOLD = 0.5


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """`loss`: mean binary cross-entropy in nats, over images and classes; `exact`: share of images for which
    all classes are right.

    `average_precision`: per class, None for a class without images. `hits`, `predicted`, `actual`: images per
    class that are predicted correctly, predicted, and labelled with the class: int64 [classes].
    `own`: the values of `eval.functions`, by name.
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
        """The mean of `average_precision`, over the classes that have images."""
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
        """Name and value of the main metric."""
        return "mAP", self.mean_average_precision

    def per_class(self) -> list[float | None]:
        """Average precision of each class; None for a class without images."""
        return self.average_precision

    def scalars(self) -> dict[str, float]:
        """The metrics that are logged, by name."""
        return {
            "map": self.mean_average_precision,
            "loss": self.loss,
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
            "exact": self.exact,
            **self.own,
        }


def evaluate_scores(logits: Tensor, targets: Tensor, loss: float) -> MultiLabelEvaluation:
    """Evaluate float logits [N, classes] against `targets`, bool [N, classes]; `loss`: their mean loss."""
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
    """Average precision of each class: Σ precision × increase of recall over distinct scores, descending.

    scores [N, classes], targets bool [N, classes]; None for a class without an image. Equal to scikit-learn's
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
        last = torch.ones(len(ordered), dtype=torch.bool, device=scores.device)  # the last of equal scores
        last[:-1] = ordered[1:] != ordered[:-1]
        precision = (hits / torch.arange(1, len(hits) + 1, device=scores.device))[last]
        recall = hits[last] / total
        rise = torch.diff(recall, prepend=recall.new_zeros(1))
        found.append(float((precision * rise).sum()))
    return found
