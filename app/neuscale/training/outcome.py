"""How training ended."""

from dataclasses import dataclass

from neuscale.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    `seconds`: of training, over all resumes, without evaluations; `images_per_second`: since
    the last resume; `stopped_by`: what asked for a stop, where it is not finished.
    """

    steps: int
    epochs: int
    seconds: float
    images_per_second: float
    last: Evaluation | None
    best_top1: float
    stopped_by: str | None
