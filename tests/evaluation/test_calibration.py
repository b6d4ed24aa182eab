"""The expected calibration error equals that of torchmetrics, for any batch size."""

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from neuscale.evaluation.calibration import Calibration, bin_sums, calibration_of


def binned(logits: Tensor, labels: Tensor, batch: int) -> Calibration:
    parts = zip(logits.split(batch), labels.split(batch), strict=True)
    return calibration_of(torch.stack([bin_sums(*part) for part in parts]).sum(0))


@pytest.mark.parametrize("sharpness", [0.3, 2.0, 20.0], ids=["unsure", "fair", "overconfident"])
@pytest.mark.parametrize("batch", [1000, 7])
def test_it_is_that_of_torchmetrics(sharpness: float, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 5, generator=generator) * sharpness
    labels = torch.randint(5, (1000,), generator=generator)
    found = binned(logits, labels, batch)
    expected = multiclass_calibration_error(logits.softmax(1), labels, num_classes=5, n_bins=15, norm="l1")
    assert found.ece == pytest.approx(float(expected), abs=1e-5)
    assert sum(found.counts) == 1000
    assert sum(found.correct) == int((logits.argmax(1) == labels).sum())


def test_known_bins() -> None:
    """Two images at 90 % confidence, one of them right; one at 100 %, right."""
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [1.0, 1e-30]]).log()
    found = binned(logits, torch.tensor([0, 1, 0]), 3)
    assert found.ece == pytest.approx(2 / 3 * 0.4)
    used = [bin for bin in found.record() if bin["images"]]
    assert [(bin["images"], bin["accuracy"]) for bin in used] == [(2, 0.5), (1, 1.0)]
    assert [bin["confidence"] for bin in used] == pytest.approx([0.9, 1.0])
    assert found.record()[0]["accuracy"] is None
