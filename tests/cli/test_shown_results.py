"""Results printed by commands, and their exit codes."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conftest import Said
from neuscale.analysis.equality import Point, Verdict
from neuscale.cli import doctor, run
from neuscale.cli.data_info import MOST_CLASSES, _show_info
from neuscale.cli.train import _show_table
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.runs.differences import Difference
from neuscale.training.outcome import Outcome

Command = Callable[..., Said]


def rows(out: str) -> dict[str, list[str]]:
    """Rows of a printed table, by their first cell."""
    cells = [re.split(r"\s*[│┃]\s*", line.strip("│┃ ")) for line in out.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 1}


@pytest.mark.parametrize(("classes", "top5"), [(5, None), (6, ["87.50%"])])
def test_the_table_after_training(
    capsys: pytest.CaptureFixture[str], classes: int, top5: list[str] | None
) -> None:
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    last = Evaluation(0.5, 0.875, 1.23456, 2021, confusion, Calibration([], [], []))
    _show_table("r", Outcome(25, 5, 3754.0, 12345.6, last, 0.75, None), last)
    shown = rows(capsys.readouterr().out)
    assert shown.pop("top-5", None) == top5
    assert shown == {
        "top-1": ["50.00%"],
        "loss": ["1.2346"],
        "best top-1": ["75.00%"],
        "images evaluated": ["2,021"],
        "training time": ["1 h 2 min"],
        "throughput": ["12,346 img/s"],
    }


FIRST = Point(15, "val", "loss", 0.5, 0.75, 4)
CHANGE = Difference("config", "optim.lr", 0.1, 0.2)


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        (Verdict(True, "bitwise equal"), 0),
        (Verdict(False, "differs first", FIRST), 1),
        (Verdict(None, "nothing in common"), 1),
        (None, 75),
    ],
    ids=["equal", "different", "unknown", "stopped"],
)
def test_a_replay_exits_with_its_verdict(
    neuscale: Command, done: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict | None, code: int
) -> None:
    again: Any = SimpleNamespace(path=done.with_name("again"), argument="again")
    made = SimpleNamespace(run=again, verdict=verdict, changed=[CHANGE], forced=["x.npy"])
    asked: list[Any] = []
    monkeypatch.setattr("neuscale.analysis.replay.replay", lambda *words: asked.append(words) or made)
    said = neuscale("runs", "replay", "done", "optim.lr=1", "--force")
    assert said.code == code
    assert asked[0][1:3] == (["optim.lr=1"], True)
    if verdict is None:
        assert "neuscale train --resume again" in said.err
        assert "neuscale runs compare done again" in said.err
    else:
        assert said.out.splitlines() == [
            verdict.words,
            "made with --force, on other data: x.npy",
            "What changed since:",
            "  config: optim.lr 0.1 → 0.2",
        ]
    found = neuscale("runs", "replay", "done", "--json")
    assert (found.code, asked[1][1:3]) == (code, ([], False))
    assert found.json == {
        "run": str(again.path),
        "of": str(done),
        "equal": verdict.equal if verdict else None,
        "verdict": verdict.words if verdict else "stopped before its end",
        "first": vars(FIRST) if code == 1 and verdict and verdict.first else None,
        "forced": ["x.npy"],
        "changed": [vars(CHANGE)],
    }


def test_many_classes_are_not_all_listed(capsys: pytest.CaptureFixture[str]) -> None:
    classes = {f"c{i}": {"train": 1000 + i, "val": i} for i in range(MOST_CLASSES + 3)}
    found: dict[str, Any] = {
        "name": "letters",
        "title": "Letters",
        "folder": "/data/letters",
        "bytes": 4_000_000,
        "images": {"train": 12_345, "val": 678},
        "shape": [1, 28, 28],
        "mean": [0.125],
        "std": [0.25],
        "classes": classes,
        "licence": "CC0",
        "fingerprint": "0123456789abcdef" * 4,
        "source": {"kind": "archive", "given": "letters.zip", "official": True},
    }
    _show_info(found)
    out = capsys.readouterr().out
    shown = rows(out)
    assert shown["images"] == ["12,345 training, 678 validation"]
    assert shown["pixels"] == ["28×28, grayscale"]
    assert shown["mean ± deviation"] == ["0.125 ± 0.250"]
    assert shown["where"] == ["/data/letters (4 MB)"]
    assert shown["made from"] == ["letters.zip, the official file"]
    assert shown["fingerprint"] == ["0123456789abcdef…"]
    assert shown[f"c{MOST_CLASSES - 1}"] == [f"1,0{MOST_CLASSES - 1}", str(MOST_CLASSES - 1)]
    assert f"c{MOST_CLASSES}" not in shown
    assert "… and 3 more (--json has all)" in " ".join(out.split())
    assert f"{MOST_CLASSES + 3} classes" in out
    _show_info(found | {"source": {"kind": "published", "given": "example.org", "official": True}})
    assert rows(capsys.readouterr().out)["made from"] == ["the official files, from example.org"]


def test_doctor_names_the_packages_that_matter_and_counts_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = {"torch": "2.15.0", "numpy": "2.1.0", **{f"p{i}": "1" for i in range(20)}}
    findings = {"packages": packages, "cores": 13, "data_sets": [], "problems": ["no [room]."]}
    monkeypatch.setattr("neuscale.doctor.machine.examine", lambda: dict(findings))
    assert run(["doctor"]) == 1
    said = capsys.readouterr()
    lines = [line.split(maxsplit=1) for line in said.out.splitlines()]
    assert lines[0][0] == "packages"
    assert lines[0][1].startswith("torch 2.15.0, torchvision none, accelerate none, numpy 2.1.0")
    assert lines[0][1].endswith("timm none, and 20 more (--json)")  # 22 are installed, two of those are named
    assert lines[1] == ["cores", "13"]
    assert said.out.splitlines()[2] == "data sets  none"
    assert said.err.splitlines() == ["problem: no [room]."]
    assert doctor._words({"gpu": True, "rate": 2.5, "ib": False}) == "gpu, rate 2.5"
