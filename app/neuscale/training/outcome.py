"""Outcome of a training, and the best evaluation so far, for early stopping."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuscale.config.schema import EvalConfig
from neuscale.errors import UsageError
from neuscale.evaluation.evaluate import AnyEvaluation, Evaluation
from neuscale.evaluation.own_metrics import OF_ONE, OF_SEVERAL


@dataclass(frozen=True)
class Outcome:
    """Outcome of a training.

    `seconds`: training time over all resumes, without evaluations. `images_per_second`: since the
    last resume. `best_top1`: -1 before an evaluation, and for multi-label data. `stopped_by`: the signal or
    limit that stopped it before its last step, or None. `best_value`: the best value of `best_metric`, the
    metric chosen by `eval.metric`; None before an evaluation.
    """

    steps: int
    epochs: int
    seconds: float
    images_per_second: float
    last: AnyEvaluation | None
    best_top1: float
    stopped_by: str | None
    best_metric: str = "top1"
    best_value: float | None = None


class BestSoFar:
    """Best evaluation by `eval.metric`, and number of evaluations since an improvement by `min_delta`.

    `value` is None before the first evaluation; `top1` is the highest so far, whatever the metric, and -1
    before the first evaluation and for multi-label data. `falling`: metrics besides the loss for which
    smaller is better. Raises UsageError for a metric that does not exist for this kind of labels.
    """

    def __init__(
        self,
        config: EvalConfig,
        patience: int | None,
        several_labels: bool = False,
        falling: Sequence[str] = (),
    ) -> None:
        known = [*(OF_SEVERAL if several_labels else OF_ONE), *config.functions]
        self._falling = ("loss", *falling)
        self.metric = known[0] if config.metric == "auto" else config.metric
        if self.metric not in known:
            raise UsageError(
                f"eval.metric={config.metric}: it is not known of images with"
                f" {'several labels' if several_labels else 'one label'}.",
                f"Choose one of {', '.join(known)}.",
            )
        self.min_delta, self.patience = config.min_delta, patience
        self.value: float | None = None
        self.top1 = -1.0
        self.stale = 0
        self._reference: float | None = None  # the value that the next improvement is measured from

    def update(self, evaluation: AnyEvaluation) -> bool:
        """Include an evaluation; return True if it is the best so far."""
        value = evaluation.scalars().get(self.metric)
        if isinstance(evaluation, Evaluation):
            self.top1 = max(self.top1, evaluation.top1)
        if value is None:  # a user-defined metric that was not finite
            self.stale += 1
            return False
        is_best = self._is_better(value, self.value, 0.0)
        if is_best:
            self.value = value
        if self._is_better(value, self._reference, self.min_delta):
            self._reference, self.stale = value, 0
        else:
            self.stale += 1
        return is_best

    def named(self) -> dict[str, Any]:
        """Fields of an Outcome."""
        return {"best_top1": self.top1, "best_metric": self.metric, "best_value": self.value}

    @property
    def exhausted(self) -> bool:
        """True after `patience` evaluations without an improvement."""
        return self.patience is not None and self.stale >= self.patience

    @property
    def words(self) -> str:
        """Message that the metric has not improved, and for how many evaluations."""
        least = f" by {self.min_delta:g}" if self.min_delta else ""
        return f"{self.metric} has not improved{least} for {self.stale} evaluations"

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "metric": self.metric,
            "value": self.value,
            "reference": self._reference,
            "top1": self.top1,
            "stale": self.stale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Resume; return False if the metric has changed, so that its best value is not known."""
        self.top1 = float(state["top1"])
        if state["metric"] != self.metric:
            return False
        self.value, self._reference, self.stale = state["value"], state["reference"], int(state["stale"])
        return True

    def load_top1(self, top1: float, stale: int) -> bool:
        """Resume from an older checkpoint, which contains only the best top-1."""
        value = top1 if top1 >= 0 else None
        state = {"metric": "top1", "value": value, "reference": value, "top1": top1, "stale": stale}
        return self.load_state_dict(state)

    def _is_better(self, value: float, than: float | None, by: float) -> bool:
        if than is None:
            return True
        return value < than - by if self.metric in self._falling else value > than + by
