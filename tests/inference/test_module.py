"""Evaluation of any module: its precision, its share of the images per process, and refused modules."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import neuscale
from conftest import ListeningProgress
from neuscale.config.schema import DataConfig
from neuscale.data.datasets import Dataset
from neuscale.data.loaders.loader import Batch
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.evaluation.evaluate import evaluate, evaluate_module, normalized_as
from neuscale.progress import Silent


@pytest.fixture
def data(command: Callable[..., Any]) -> Dataset:
    """The data set 'odd'."""
    del command  # for the environment that it sets
    return neuscale.load_data("odd")


class Zeros(nn.Module):
    """Model that returns zeros as logits: [B, numbers]."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return torch.zeros(len(images), self.numbers)


def test_evaluation_runs_in_the_precision_of_the_run_and_sums_in_single() -> None:
    """bfloat16 logits are converted to float32 before exponentials and sums."""
    entered: list[str] = []

    class Context:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *_: object) -> None:
            entered.append("out")

    class Half(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert entered[-1] == "in"
            assert torch.is_inference_mode_enabled()
            return images.flatten(1).to(torch.bfloat16)

    logits = (torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) * 4).to(torch.bfloat16)
    labels = torch.arange(60) % 6
    batches = [
        Batch(logits[part].float()[:, :, None, None], labels[part], labels[part], 0, slice(0, 0))
        for part in (slice(0, 45), slice(45, 60))
    ]
    listening = ListeningProgress()
    found = evaluate(Half(), batches, 6, torch.device("cpu"), Context, listening, 60)
    assert entered == ["in", "out", "in", "out"]
    expected = nn.functional.cross_entropy(logits.double(), labels)
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    confidence = logits.double().softmax(1).max(1).values
    assert sum(found.calibration.confidences) == pytest.approx(float(confidence.sum()), rel=1e-5)
    assert [(t.title, t.total, t.unit, t.done) for t in listening.tasks] == [("evaluating", 60, "img", 60)]


def test_each_process_takes_its_share(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of 3 evaluates images 9 … 18 of 29."""
    monkeypatch.setattr(Rank, "current", lambda: Rank(1, 3))
    expected = data.labels("val")[9:19].tolist()
    found = evaluate_module(Zeros(7), data, "val", 4, DataConfig("odd", image_size=8), Silent())
    assert found.confusion.sum(1).tolist() == [expected.count(label) for label in range(7)]
    assert found.samples == 10


def test_data_of_other_classes_are_not_evaluated_on(data: Dataset) -> None:
    changes: list[dict[str, Any]] = [{"classes": data.meta.classes[::-1]}, {"channels": 1}]
    for change in changes:
        other = copy(data)
        other.meta = replace(data.meta, **change)
        with pytest.raises(UsageError, match="other classes or channels"):
            normalized_as(other, data)


def test_nothing_but_a_classifier_of_these_classes_is_evaluated(data: Dataset) -> None:
    model = Zeros(8).train()
    with pytest.raises(UsageError, match=r"returned shape \(1, 8\); expected \(1, 7\), .* of odd"):
        evaluate_module(model, data, "val", 4, DataConfig("odd", image_size=8), Silent())
    assert model.training
