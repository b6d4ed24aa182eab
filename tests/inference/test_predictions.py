"""Predictions for all images of a split, and the order of the worst and of the misclassified images."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from conftest import ListeningProgress
from neuscale.inference.evaluate_run import evaluation_loader
from neuscale.inference.predict import Predictions, predict_split
from neuscale.inference.restore import restore
from neuscale.progress import Silent
from neuscale.runs.folder import RunFolder

from .conftest import Odd


def made(labels: list[int], predicted: list[int], confidence: list[float], loss: list[float]) -> Predictions:
    evaluation: Any = None
    numbers = (torch.tensor(values) for values in (labels, predicted, confidence, loss))
    return Predictions(*numbers, torch.empty(0), evaluation)


def test_the_worst_come_first_and_equals_in_the_order_of_the_data() -> None:
    found = made([0] * 6, [0] * 6, [0.5] * 6, [1.0, 3.0, 0.5, 3.0, 7.0, 1.0])
    assert found.worst(5) == [4, 1, 3, 0, 5]
    assert found.worst(100) == [4, 1, 3, 0, 5, 2]


def test_mistaken_are_those_of_one_class_taken_for_another_the_surest_first() -> None:
    labels, predicted = [2, 2, 1, 2, 2, 2, 1, 0], [1, 1, 2, 2, 1, 0, 2, 1]
    found = made(labels, predicted, [0.4, 0.9, 0.8, 0.99, 0.9, 0.7, 0.85, 0.6], [0.0] * 8)
    assert found.mistaken(2, 1, 9) == [1, 4, 0]
    assert found.mistaken(2, 1, 2) == [1, 4]
    assert found.mistaken(1, 2, 9) == [6, 2]
    assert found.mistaken(0, 2, 9) == []


def test_they_are_those_of_a_plain_forward_pass_in_the_order_of_the_data(
    command: Callable[..., Any], odd: Odd, listening: ListeningProgress
) -> None:
    del command
    restored = restore(RunFolder(odd.run), "last", "raw", "cpu", Silent())
    found = predict_split(restored, evaluation_loader(restored, "train"), listening)
    logits, labels = odd.split_logits(9, "raw", "train"), odd.labels("train")
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    own = torch.from_numpy(shares).gather(1, labels[:, None])[:, 0]
    assert found.labels.tolist() == labels.tolist()
    assert found.predicted.tolist() == shares.argmax(1).tolist()
    assert torch.allclose(found.confidence.double(), torch.from_numpy(shares.max(1)), atol=1e-5)
    assert torch.allclose(found.loss.double(), -own.log(), atol=1e-4)
    assert found.evaluation.samples == 36
    assert abs(found.evaluation.loss - float(-own.log().mean())) < 1e-4
    assert [(task.total, task.done) for task in listening.tasks] == [(36, 36)]
