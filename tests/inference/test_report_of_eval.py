"""Output of `neuscale eval`: each cell of its tables and each field of its JSON, for made-up numbers."""

import json
from pathlib import Path

import pytest
import torch

from neuscale.cli.evaluation_report import print_evaluation, show_evaluation
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.evaluation.latency import Latency
from neuscale.inference.evaluate_run import EvaluatedRun

CLASSES = ["ape", "bee", "cat", "dog", "elk", "[red]fox"]
# Rows are true classes. 'bee' has no images; two kinds of mistakes on 'fox' are equally frequent.
CONFUSION = [
    [5, 2, 0, 1, 0, 3],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 4, 0, 0, 0],
    [1, 0, 6, 0, 2, 0],
    [0, 1200, 0, 0, 34, 0],
    [0, 0, 0, 1, 1, 2],
]
# In the bins (0, 1/3], (1/3, 2/3] and (2/3, 1]: 4 images, none, and 6.
BINS = Calibration([4, 0, 6], [1.2, 0.0, 5.4], [2, 0, 3])
CORRUPTED = {"shot_noise": [0.5, 0.4, 0.3, 0.2, 0.1], "fog": [1.0, 0.9, 0.9, 0.8, 0.7]}
LATENCY = [Latency(1, 1000, 2.345, 4.5, 426.4), Latency(1024, 20, 1234.5, 2345.6, 829.5)]


def evaluated(classes: int = 6, extras: bool = True) -> EvaluatedRun:
    confusion = torch.tensor(CONFUSION)[:classes, :classes]
    result = Evaluation(0.03562, 0.98765, 2.34567, 1262, confusion, BINS)
    return EvaluatedRun(
        result, "/runs/a/step-00000012", 12, "ema", CLASSES[:classes], True,
        CORRUPTED if extras else {}, LATENCY if extras else [],
    )  # fmt: skip


def rows(out: str, title: str) -> list[list[str]]:
    """Cells of the table below a title, header row first."""
    lines = out[out.index(title) :].splitlines()[1:]
    cells = []
    for line in lines:
        if cells and not any(mark in line for mark in "│┃├┡╇└┴─━"):
            break
        if any(mark in line for mark in "│┃"):
            cells.append([cell.strip() for cell in line.replace("┃", "│").strip("│ ").split("│")])
        if line.startswith("└"):
            break
    return cells


def test_each_class_with_what_it_is_most_often_taken_for(capfd: pytest.CaptureFixture[str]) -> None:
    show_evaluation("a", evaluated(extras=False), "val", "none", None)
    out = capfd.readouterr().out
    found = [row + [""] * (4 - len(row)) for row in rows(out, "a: val, /runs/a/step-00000012")]
    assert found == [
        ["class", "images", "accuracy", "most often taken for"],
        ["dog", "9", "0.0%", "cat (6)"],
        ["elk", "1,234", "2.8%", "bee (1200)"],
        ["ape", "11", "45.5%", "[red]fox (3)"],
        ["[red]fox", "4", "50.0%", "dog (1)"],
        ["cat", "4", "100.0%", ""],
        ["bee", "0", "no images", ""],
    ]
    # |1.2 - 2| and |5.4 - 3| over ten images.
    assert out.splitlines()[-2] == "balanced accuracy 39.64%   macro-F1 27.63%"
    last = out.splitlines()[-1]
    assert last == "top-1 3.56%   top-5 98.77%   loss 2.3457   ECE 32.00%   on 1,262 images"
    assert "corrupted" not in out
    assert "forward pass" not in out


def test_corruptions_latency_and_the_rest(capfd: pytest.CaptureFixture[str]) -> None:
    show_evaluation("a", evaluated(5), "train", "flip", Path("new/diagram.png"))
    out = capfd.readouterr().out
    assert "a: train, " in out
    assert rows(out, "top-1 on corrupted images, by severity") == [
        ["corruption", "1", "2", "3", "4", "5", "mean"],
        ["shot noise", "50.0%", "40.0%", "30.0%", "20.0%", "10.0%", "30.0%"],
        ["fog", "100.0%", "90.0%", "90.0%", "80.0%", "70.0%", "86.0%"],
    ]
    assert rows(out, "two forward passes, one of them of mirror images") == [
        ["batch", "median ms", "p95 ms", "img/s"],
        ["1", "2.35", "4.50", "426"],
        ["1,024", "1,234.50", "2,345.60", "830"],
    ]
    assert out.splitlines()[-3:] == [
        "top-1 3.56%   loss 2.3457   ECE 32.00%   on 1,262 images, mirrored as well",
        "top-1 58.00% on corrupted images, the mean of all",
        "The reliability diagram is new/diagram.png",
    ]
    show_evaluation("a", evaluated(), "val", "none", None)
    assert "two forward passes" not in (said := capfd.readouterr().out)
    assert rows(said, "a forward pass")[1][0] == "1"


def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    print_evaluation("a", evaluated(), "train", "flip")
    found = json.loads(capfd.readouterr().out)
    assert found.pop("ece") == pytest.approx(0.32)
    assert found.pop("corrupted_top1") == pytest.approx(0.58)
    per_class = [5 / 11, None, 1.0, 0.0, 34 / 1234, 0.5]
    assert list(found["per_class"]) == CLASSES
    for share, expected in zip(found.pop("per_class").values(), per_class, strict=True):
        assert share == (None if expected is None else pytest.approx(expected))
    first, empty, third = found.pop("calibration")
    assert first == {
        "from": 0,
        "to": 0.333333,
        "images": 4,
        "confidence": pytest.approx(0.3),
        "accuracy": 0.5,
    }
    assert empty == {"from": 0.333333, "to": 0.666667, "images": 0, "confidence": None, "accuracy": None}
    assert third == {
        "from": 0.666667,
        "to": 1,
        "images": 6,
        "confidence": pytest.approx(0.9),
        "accuracy": 0.5,
    }
    fields = ["batch_size", "passes", "median_ms", "p95_ms", "images_per_second"]
    assert found == {
        "run": "a",
        "checkpoint": "/runs/a/step-00000012",
        "step": 12,
        "weights": "ema",
        "split": "train",
        "tta": "flip",
        "samples": 1262,
        "top1": 0.03562,
        "top5": 0.98765,
        "loss": 2.34567,
        "balanced_accuracy": pytest.approx((5 / 11 + 1 + 0 + 34 / 1234 + 2 / 4) / 5),
        "macro_f1": pytest.approx((10 / 17 + 0 + 8 / 14 + 0 + 68 / 1271 + 4 / 9) / 6),
        "corruptions": CORRUPTED,
        "latency": [
            dict(zip(fields, (1, 1000, 2.345, 4.5, 426.4), strict=True)),
            dict(zip(fields, (1024, 20, 1234.5, 2345.6, 829.5), strict=True)),
        ],
    }  # fmt: skip
    print_evaluation("a", evaluated(extras=False), "val", "none")
    assert not {"corrupted_top1", "corruptions", "latency"} & set(json.loads(capfd.readouterr().out))
