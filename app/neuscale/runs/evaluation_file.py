"""`evaluation.json`: the last evaluation of a run, which outlives its data and checkpoints."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.fs import write_atomically
from neuscale.untrusted import read_json

FILE = "evaluation.json"


# A matrix of more classes does not fit a memory; the file holds its cells that are not zero.
_MOST_CLASSES, _LIMIT = 1 << 15, 1 << 30


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation after `step`, and the names of the classes."""

    step: int
    classes: list[str]
    evaluation: Evaluation


def store_evaluation(folder: Path, step: int, classes: list[str], result: Evaluation) -> None:
    """Replace the evaluation in a run's folder. Of the confusion matrix it holds what is not zero."""
    counts: Tensor = result.confusion
    places = torch.nonzero(counts)
    confusion = torch.cat([places, counts[places[:, 0], places[:, 1]][:, None]], 1).tolist()
    content = {
        "step": step,
        **result.scalars(),
        "samples": result.samples,
        "classes": classes,
        "confusion": confusion,
        "calibration": asdict(result.calibration),
    }
    write_atomically(folder / FILE, json.dumps(content, ensure_ascii=False) + "\n")


def stored_evaluation(folder: Path) -> StoredEvaluation | None:
    """The evaluation in a run's folder; None where there is none that can be read."""
    try:
        content = read_json(folder / FILE, _LIMIT)
        classes = [str(name) for name in content["classes"]]
        if len(classes) > _MOST_CLASSES:
            return None
        confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        for true, predicted, count in content["confusion"]:
            if true < 0 or predicted < 0:
                return None
            confusion[true, predicted] = count
        result = Evaluation(
            float(content["top1"]),
            float(content["top5"]),
            float(content["loss"]),
            int(content["samples"]),
            confusion,
            _calibration(**content["calibration"]),
        )
        return StoredEvaluation(int(content["step"]), classes, result)
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RuntimeError):
        return None


def _calibration(counts: list[int], confidences: list[float], correct: list[int]) -> Calibration:
    """The bins, of numbers and equally many. Raises ValueError or TypeError."""
    if not len(counts) == len(confidences) == len(correct):
        raise ValueError("its bins are not equally many")
    return Calibration([int(n) for n in counts], [float(c) for c in confidences], [int(n) for n in correct])
