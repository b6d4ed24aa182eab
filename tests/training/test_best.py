"""Choice of the best evaluation, in a run whose best epoch is neither the first nor the last."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import ListeningProgress
from neuscale.config import Config
from neuscale.config.schema import EvalConfig
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.training import trainer
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.outcome import BestSoFar
from neuscale.training.run import TrainedRun, train

ConfigBuilder = Callable[..., Config]
TOP1 = [0.25, 0.5, 0.75, 0.5, 0.625, 0.75, 0.375]  # the second 0.75 is not an improvement


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[Evaluation]:
    """Real evaluations, whose top-1 is replaced by the values of TOP1 in turn."""
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


def test_one_that_is_the_best_no_longer_goes(tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    with_numbers(monkeypatch, [{"top1": 0.25 * i} for i in range(1, 4)])
    assert kept(train(tiny("train.epochs=3", "checkpoint.keep_last=1", "run.name=rising"))) == [15]


def test_after_a_resume_the_best_is_still_the_one_before(
    tiny: ConfigBuilder, evaluations: list[Evaluation]
) -> None:
    words = ["train.epochs=7", "checkpoint.keep_last=1"]
    stopped = train(tiny(*words, "train.max_steps=20", "run.name=best"))
    assert kept(stopped) == [15, 20]
    longer = train(tiny("train.epochs=5", "checkpoint.keep_last=1"), stopped.run)
    assert (longer.outcome.best_top1, kept(longer)) == (0.75, [15, 25])
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
        assert evaluation.samples == 21  # the other 60 are trained on
        assert evaluation.confusion.sum(1).tolist() == [7, 7, 7]


def with_numbers(monkeypatch: pytest.MonkeyPatch, numbers: list[dict[str, float]]) -> None:
    """Patch evaluations so that their `scalars` take these values in turn."""
    left = list(numbers)
    real = Evaluation.scalars
    by_result: dict[int, dict[str, float]] = {}

    def stand_in(*arguments: Any, **named: Any) -> Evaluation:
        result = evaluate(*arguments, **named)
        by_result[id(result)] = left.pop(0)
        kept_alive.append(result)
        return result

    kept_alive: list[Evaluation] = []
    monkeypatch.setattr(trainer, "evaluate", stand_in)
    monkeypatch.setattr(Evaluation, "scalars", lambda self: {**real(self), **by_result.get(id(self), {})})


def test_the_metric_that_is_chosen_makes_the_best_and_is_waited_for(
    tiny: ConfigBuilder, monkeypatch: pytest.MonkeyPatch, listening: ListeningProgress
) -> None:
    losses = [2.0, 1.0, 0.95, 0.93, 0.5]
    with_numbers(monkeypatch, [{"loss": loss, "top1": 0.1 * i} for i, loss in enumerate(losses)])
    words = ["train.epochs=9", "train.patience=2", "eval.metric=loss", "eval.min_delta=0.1", "run.name=x"]
    trained = train(tiny(*words), None, listening)
    # 0.95 and 0.93 are each the best so far, but not an improvement by 0.1.
    assert trained.outcome.epochs == 4
    assert best(trained)["checkpoint"] == "step-00000020" and best(trained)["loss"] == 0.93
    assert "early stopping: loss has not improved by 0.1 for 2 evaluations" in listening.messages
    again = train(trained.run.config(), trained.run, listening)
    assert again.outcome.epochs == 4
    said = listening.messages[-1]
    assert "early stopping ended it, since loss has not improved by 0.1" in said
    assert "raise train.patience" in said and "train.epochs" not in said
    # With more patience the run resumes with its saved count and best value.
    longer = train(trained.run.config(["train.patience=3", "train.epochs=5"]), trained.run, listening)
    assert longer.outcome.epochs == 5 and best(longer)["checkpoint"] == "step-00000025"


def test_another_metric_on_the_way_begins_anew_and_says_so(
    tiny: ConfigBuilder, listening: ListeningProgress
) -> None:
    run = train(tiny("train.epochs=2", "run.name=x")).run
    trained = train(run.config(["train.epochs=3", "eval.metric=macro_f1"]), run, listening)
    assert "the best evaluation so far is not known by macro_f1" in listening.warnings
    assert best(trained)["checkpoint"] == "step-00000015"


@pytest.mark.parametrize("metric", ["top1", "top5", "balanced_accuracy", "macro_f1", "loss"])
def test_every_metric_has_its_direction(metric: str) -> None:
    def result(value: float) -> Evaluation:
        numbers = {metric: value} if metric in ("top1", "top5", "loss") else {}
        found = Evaluation(
            *(numbers.get(name, 0.5) for name in ("top1", "top5", "loss")),
            10,
            torch.tensor([[round(10 * value), 10 - round(10 * value)], [0, 10]]),
            Calibration([], [], []),
        )
        assert metric in numbers or found.scalars()[metric] != 0.5
        return found

    so_far = BestSoFar(EvalConfig(metric=metric), patience=2)
    order = [0.9, 0.6, 0.7] if metric == "loss" else [0.6, 0.9, 0.8]
    assert [so_far.update(result(value)) for value in order] == [True, True, False]
    assert (so_far.stale, so_far.exhausted) == (1, False)
    assert not so_far.update(result(order[-1])) and so_far.exhausted


def test_balanced_accuracy_and_macro_f1_are_those_of_the_definitions() -> None:
    """Recall is averaged over classes with images, F1 over classes with images or predictions."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (200,), generator=generator)
    labels[labels == 2] = 0  # a class without images that is still predicted
    predicted = torch.where(torch.rand(200, generator=generator) < 0.6, labels, 2)
    confusion = torch.zeros(5, 5, dtype=torch.int64)
    for label, named in zip(labels.tolist(), predicted.tolist(), strict=True):
        confusion[label, named] += 1
    found = Evaluation(0.0, 0.0, 0.0, 200, confusion, Calibration([], [], []))
    recalls, scores = [], []
    for each in range(5):
        hits = int(((labels == each) & (predicted == each)).sum())
        there, named = int((labels == each).sum()), int((predicted == each).sum())
        if there:
            recalls.append(hits / there)
        if there or named:
            precision, recall = hits / named if named else 0.0, hits / there if there else 0.0
            scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert found.balanced_accuracy == pytest.approx(sum(recalls) / 3)
    assert found.macro_f1 == pytest.approx(sum(scores) / 4)
