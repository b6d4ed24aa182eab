"""The bin of an image, and the bars and points of the reliability diagram."""

from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
import torch

from neuscale.evaluation.calibration import (
    Calibration,
    bin_sums,
    calibration_of,
    save_reliability_diagram,
)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it() -> None:
    """Bins are (a, b] as in Guo et al.; these confidences are exact in floating point."""
    quarter, half = torch.zeros(4), torch.tensor([0.0, 0.0, -1e4, -1e4])
    sure = torch.tensor([0.0, -1e4, -1e4, -1e4])
    logits = torch.stack([quarter, half, half, half, sure, sure])
    found = calibration_of(bin_sums(logits, torch.tensor([0, 0, 0, 3, 1, 2]), 4))
    assert found.counts == [1, 3, 0, 2]
    assert found.confidences == [0.25, 1.5, 0.0, 2.0]
    assert found.correct == [1, 2, 0, 0]
    assert found.ece == (0.75 + 0.5 + 2) / 6


def test_of_no_image_there_are_15_empty_bins() -> None:
    found = calibration_of(bin_sums(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))
    assert (found.counts, found.ece) == ([0] * 15, 0)


def test_the_diagram_draws_accuracy_over_confidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    save = matplotlib.figure.Figure.savefig

    def savefig(figure: Any, *words: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *words, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    bins = Calibration([2, 0, 8, 10], [0.4, 0.0, 5.0, 9.5], [1, 0, 4, 7])
    save_reliability_diagram(bins, "a, val", tmp_path / "a.png")
    above, below = saved[0].axes
    # |0.4 - 1|, |5 - 4| and |9.5 - 7|, over 20 images.
    assert above.get_title() == "a, val\nECE 20.50% in 4 bins"
    assert [bar.get_height() for bar in above.patches] == [0.5, 0, 0.5, 0.7]
    assert [bar.get_height() for bar in below.patches] == [2, 0, 8, 10]
    for bars in (above.patches, below.patches):
        middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
        assert middles == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=1e-6)
    lines = {line.get_label(): [list(values) for values in line.get_data()] for line in above.lines}
    assert lines["perfectly calibrated"] == [[0, 1], [0, 1]]
    confidence, accuracy = lines["at the mean confidence"]
    assert confidence == pytest.approx([0.2, 0.625, 0.95])
    assert accuracy == pytest.approx([0.5, 0.5, 0.7])
    assert (above.get_xlim(), above.get_ylim()) == ((0, 1), (0, 1))
    assert (above.get_ylabel(), below.get_ylabel(), below.get_xlabel()) == (
        "accuracy",
        "images",
        "confidence",
    )
