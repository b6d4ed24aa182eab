"""The last evaluation of a run, kept in its folder: what it says outlives the data and the checkpoints."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.files import write_atomically

FILE = "evaluation.json"


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation after `step`, and the names of the classes."""

    step: int
    classes: list[str]
    evaluation: Evaluation


def store_evaluation(folder: Path, step: int, classes: list[str], result: Evaluation) -> None:
    """Replaces the evaluation in a run's folder. Of the confusion matrix it holds what is not zero."""
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
        content = json.loads((folder / FILE).read_text())
        classes = [str(name) for name in content["classes"]]
        confusion = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        for true, predicted, count in content["confusion"]:
            confusion[true, predicted] = count
        result = Evaluation(
            content["top1"],
            content["top5"],
            content["loss"],
            content["samples"],
            confusion,
            Calibration(**content["calibration"]),
        )
        return StoredEvaluation(content["step"], classes, result)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
