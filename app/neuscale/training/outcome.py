"""Outcome of a training."""

from dataclasses import dataclass

from neuscale.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Outcome:
    """Outcome of a training.

    `seconds`: training time over all resumes, without evaluations. `images_per_second`: since the
    last resume. `stopped_by`: the signal or limit that stopped it before its last step, or None.
    """

    steps: int
    epochs: int
    seconds: float
    images_per_second: float
    last: Evaluation | None
    best_top1: float
    stopped_by: str | None
