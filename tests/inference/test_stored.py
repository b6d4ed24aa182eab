"""evaluation.json is read back as it was written; None if it is missing or damaged."""

import json
from pathlib import Path

import pytest
import torch

from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.runs.evaluation_file import FILE, store_evaluation, stored_evaluation

CONFUSION = torch.tensor([[0, 7, 0], [2, 0, 0], [0, 0, 3]])
RESULT = Evaluation(0.25, 0.875, 1.5, 12, CONFUSION, Calibration([4, 8], [1.5, 6.25], [1, 2]))
CLASSES = ["Kätzchen", "dog", "[red]"]


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    store_evaluation(tmp_path, 5, ["a"], RESULT)
    store_evaluation(tmp_path, 17, CLASSES, RESULT)
    found = stored_evaluation(tmp_path)
    assert found is not None
    assert (found.step, found.classes) == (17, CLASSES)
    assert found.evaluation.scalars() == RESULT.scalars()
    assert [found.evaluation.scalars()[name] for name in ("top1", "top5", "loss")] == [0.25, 0.875, 1.5]
    assert found.evaluation.samples == 12
    assert found.evaluation.confusion.dtype == torch.int64
    assert found.evaluation.confusion.tolist() == CONFUSION.tolist()
    assert found.evaluation.calibration == RESULT.calibration
    assert found.evaluation.per_class() == [0, 0, 1]
    content = json.loads((tmp_path / FILE).read_text())
    assert content["confusion"] == [[0, 1, 7], [1, 0, 2], [2, 2, 3]], "true, predicted, count"
    assert (content["top1"], content["samples"], content["classes"]) == (0.25, 12, CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize(
    "damage", ["missing", "cut short", "no step", "a class too many", "bins of another form"]
)
def test_what_cannot_be_read_is_none(tmp_path: Path, damage: str) -> None:
    store_evaluation(tmp_path, 17, CLASSES, RESULT)
    file = tmp_path / FILE
    content = json.loads(file.read_text())
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_text(file.read_text()[:-9])
    elif damage == "no step":
        file.write_text(json.dumps({name: value for name, value in content.items() if name != "step"}))
    elif damage == "a class too many":
        file.write_text(json.dumps({**content, "confusion": [[3, 0, 1]]}))
    else:
        file.write_text(json.dumps({**content, "calibration": {"counts": [1]}}))
    assert stored_evaluation(tmp_path) is None
