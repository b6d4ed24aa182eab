"""`evaluation.json`: the last evaluation of a run, kept even if its data and checkpoints are removed."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import AnyEvaluation, Evaluation
from neuscale.evaluation.multi_label import MultiLabelEvaluation
from neuscale.fs import write_atomically
from neuscale.untrusted import read_json

FILE = "evaluation.json"

_COUNTS = ("hits", "predicted", "actual")  # fields of a MultiLabelEvaluation


# With more classes the confusion matrix would not fit into memory; the file contains only non-zero cells.
_MOST_CLASSES, _LIMIT = 1 << 15, 1 << 30


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation after `step`, and the names of the classes."""

    step: int
    classes: list[str]
    evaluation: AnyEvaluation


def store_evaluation(folder: Path, step: int, classes: list[str], result: AnyEvaluation) -> None:
    """Replace the evaluation in a run's folder; of the confusion matrix only non-zero cells are stored."""
    content = {
        "step": step,
        **result.scalars(),
        "samples": result.samples,
        "classes": classes,
        "own": result.own,
    }
    content |= _matrix(result) if isinstance(result, Evaluation) else _by_class(result)
    write_atomically(folder / FILE, json.dumps(content, ensure_ascii=False) + "\n")


def _by_class(result: MultiLabelEvaluation) -> dict[str, Any]:
    counts = {name: getattr(result, name).tolist() for name in _COUNTS}
    return {"average_precision": result.average_precision, **counts}


def _matrix(result: Evaluation) -> dict[str, Any]:
    counts: Tensor = result.confusion
    places = torch.nonzero(counts)
    confusion = torch.cat([places, counts[places[:, 0], places[:, 1]][:, None]], 1).tolist()
    return {"confusion": confusion, "calibration": asdict(result.calibration)}


def stored_evaluation(folder: Path) -> StoredEvaluation | None:
    """The evaluation in a run's folder; None if it is missing or cannot be read."""
    try:
        content = read_json(folder / FILE, _LIMIT)
        classes = [str(name) for name in content["classes"]]
        if len(classes) > _MOST_CLASSES:
            return None
        if "average_precision" in content:
            return StoredEvaluation(int(content["step"]), classes, _read_by_class(content, len(classes)))
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
            _own(content),
        )
        return StoredEvaluation(int(content["step"]), classes, result)
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RuntimeError):
        return None


def _read_by_class(content: Any, classes: int) -> MultiLabelEvaluation:
    """Parse a multi-label evaluation. Raises ValueError, KeyError or TypeError if it is invalid."""
    values = [None if value is None else float(value) for value in content["average_precision"]]
    counts = {name: [int(count) for count in content[name]] for name in _COUNTS}
    if {len(values), *map(len, counts.values())} != {classes}:
        raise ValueError("it has not one number for each class")
    return MultiLabelEvaluation(
        float(content["loss"]),
        int(content["samples"]),
        float(content["exact"]),
        values,
        **{name: torch.tensor(found, dtype=torch.int64) for name, found in counts.items()},
        own=_own(content),
    )


def _own(content: Any) -> dict[str, float]:
    """The values of `eval.functions`. Raises ValueError or TypeError if they are invalid."""
    return {str(name): float(value) for name, value in dict(content.get("own", {})).items()}


def _calibration(counts: list[int], confidences: list[float], correct: list[int]) -> Calibration:
    """Calibration from the stored bins. Raises ValueError or TypeError if they are invalid."""
    if not len(counts) == len(confidences) == len(correct):
        raise ValueError("its bins are not equally many")
    return Calibration([int(n) for n in counts], [float(c) for c in confidences], [int(n) for n in correct])
