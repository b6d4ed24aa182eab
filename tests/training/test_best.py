"""Which evaluation was the best, in a run whose best epoch is neither the first nor the last."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from neuscale.config import Config
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.training import trainer
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.run import TrainedRun, train

ConfigBuilder = Callable[..., Config]
TOP1 = [0.25, 0.5, 0.75, 0.5, 0.625, 0.75, 0.375]  # the second 0.75 is no better than the first


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[Evaluation]:
    """Real evaluations, whose top-1 is made that of TOP1, one after the other."""
    seen: list[Evaluation] = []

    def stand_in(*arguments: Any, **named: Any) -> Evaluation:
        seen.append(replace(evaluate(*arguments, **named), top1=TOP1[len(seen)]))
        return seen[-1]

    monkeypatch.setattr(trainer, "evaluate", stand_in)
    return seen


def kept(trained: TrainedRun) -> list[int]:
    paths = CheckpointFolder(trained.run.checkpoints).paths()
    return [int(path.name.removeprefix("step-")) for path in paths]


def best(trained: TrainedRun) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trained.run.checkpoints / "best.json").read_text())
    return found


def test_the_best_epoch_is_kept_and_told_beside_the_last(
    tiny: ConfigBuilder, evaluations: list[Evaluation]
) -> None:
    trained = train(tiny("train.epochs=5", "checkpoint.keep_last=1", "run.name=best"))
    assert len(evaluations) == 5
    assert kept(trained) == [15, 25]
    assert (best(trained)["checkpoint"], best(trained)["top1"]) == ("step-00000015", 0.75)
    assert trained.outcome.best_top1 == 0.75
    assert trained.outcome.last is not None and trained.outcome.last.top1 == 0.625
    result = json.loads(trained.run.manifest_file.read_text())["result"]
    assert (result["best_top1"], result["last"]["top1"]) == (0.75, 0.625)
    assert (result["steps"], result["epochs"]) == (25, 5)


def test_after_a_resume_the_best_is_still_the_one_before(
    tiny: ConfigBuilder, evaluations: list[Evaluation]
) -> None:
    words = ["train.epochs=7", "checkpoint.keep_last=1"]
    stopped = train(tiny(*words, "train.max_steps=20", "run.name=best"))
    assert kept(stopped) == [15, 20]
    trained = train(tiny(*words), stopped.run)
    assert [e.top1 for e in evaluations] == TOP1
    assert kept(trained) == [15, 35]
    assert best(trained)["checkpoint"] == "step-00000015"
    assert trained.outcome.best_top1 == 0.75


def test_patience_counts_the_evaluations_since_the_best(
    tiny: ConfigBuilder, evaluations: list[Evaluation]
) -> None:
    trained = train(tiny("train.epochs=9", "train.patience=2", "run.name=patient"))
    assert len(evaluations) == 5, "two after the third, which was the best"
    assert trained.outcome.epochs == 5


def test_every_second_epoch_and_the_last_are_evaluated_on_the_validation_images(
    tiny: ConfigBuilder, evaluations: list[Evaluation]
) -> None:
    trained = train(tiny("train.epochs=5", "eval.every_epochs=2", "run.name=seldom"))
    lines = [json.loads(line) for line in trained.run.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "val"] == [10, 20, 25]
    for evaluation in evaluations:
        assert evaluation.samples == 21  # 60 are trained on
        assert evaluation.confusion.sum(1).tolist() == [7, 7, 7]
