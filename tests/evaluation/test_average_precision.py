"""Evaluation of multi-label images, against sums that are written out."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neuscale.data.loaders.loader import Batch
from neuscale.evaluation.evaluate import FlipAveraged, evaluate
from neuscale.evaluation.multi_label import MultiLabelEvaluation, average_precisions, evaluate_scores
from neuscale.progress import Silent

CPU = torch.device("cpu")


def average_precision(scores: list[float], right: list[bool]) -> float:
    """Σ (recall - previous recall) × precision, over the distinct scores from the highest down."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [is_right for score, is_right in zip(scores, right, strict=True) if score >= threshold]
        recall = sum(taken) / sum(right)
        total += (recall - before) * sum(taken) / len(taken)
        before = recall
    return total


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_its_sum_also_where_scores_are_equal(pairs: list[tuple[int, bool]]) -> None:
    scores, right = [float(score) for score, _ in pairs], [is_right for _, is_right in pairs]
    (found,) = average_precisions(torch.tensor(scores)[:, None], torch.tensor(right)[:, None])
    if not any(right):
        assert found is None
    else:
        assert found == pytest.approx(average_precision(scores, right), rel=1e-12)


def test_average_precision_of_a_known_example() -> None:
    """The example in scikit-learn's documentation of average_precision_score gives 0.83."""
    scores = torch.tensor([[0.1], [0.4], [0.35], [0.8]])
    (found,) = average_precisions(scores, torch.tensor([[False], [False], [True], [True]]))
    assert found == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_the_numbers_are_counts_at_a_probability_of_a_half() -> None:
    logits = torch.tensor([[0.0, -1.0, 2.0], [-0.1, 3.0, -2.0], [1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]])
    targets = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    found = evaluate_scores(logits, targets, 0.5)
    assert found.actual.tolist() == [2, 2, 1]
    assert found.predicted.tolist() == [2, 2, 1]  # logit 0 is probability 0.5
    assert found.hits.tolist() == [1, 2, 1]
    assert found.exact == 0.5  # the first and the last image
    assert found.micro_f1 == pytest.approx(2 * 4 / (5 + 5))
    assert found.macro_f1 == pytest.approx((2 * 1 / 4 + 1 + 1) / 3)
    assert found.mean_average_precision == pytest.approx(
        (average_precision([0, -0.1, 1, -1], [True, True, False, False]) + 2) / 3
    )
    assert found.headline == ("mAP", found.mean_average_precision)
    assert found.scalars()["map"] == found.mean_average_precision


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    logits = torch.tensor([[1.0, -5.0], [-1.0, -5.0]])
    found = evaluate_scores(logits, torch.tensor([[True, False], [False, False]]), 0.0)
    assert found.average_precision == [1.0, None] and found.mean_average_precision == 1.0
    assert found.macro_f1 == 1.0 and found.micro_f1 == 1.0 and found.exact == 1.0
    nothing = evaluate_scores(logits - 10, torch.zeros(2, 2, dtype=torch.bool), 0.0)
    assert (nothing.mean_average_precision, nothing.macro_f1, nothing.micro_f1) == (0.0, 0.0, 0.0)


class Lookup(nn.Module):
    """Model whose logits are the images' first pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :3]


def test_evaluate_looks_labels_up_in_the_table() -> None:
    table = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 1, 0]]).bool()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(10, 1, 1, 3, generator=generator)
    labels = torch.randint(0, 3, (10,), generator=generator)
    batches = [
        Batch(
            images[first : first + 4], labels[first : first + 4], torch.arange(4), 0, slice(first, first + 4)
        )
        for first in (0, 4, 8)
    ]
    found = evaluate(Lookup(), batches, table, CPU, nullcontext, Silent(), 10)
    assert isinstance(found, MultiLabelEvaluation) and found.samples == 10
    scores, targets = images[:, 0, 0], table[labels]
    losses = [
        math.log1p(math.exp(-float(x))) if y else math.log1p(math.exp(float(x)))
        for x, y in zip(scores.flatten(), targets.flatten(), strict=True)
    ]
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    for i in range(3):
        expected = average_precision(scores[:, i].tolist(), targets[:, i].tolist())
        assert found.average_precision[i] == pytest.approx(expected)


def test_mirrored_probabilities_are_averaged() -> None:
    images = torch.randn(5, 1, 1, 3, generator=torch.Generator().manual_seed(1)) * 20
    found = FlipAveraged(Lookup(), several_labels=True)(images)
    expected = (images.sigmoid() + images.flip(-1).sigmoid())[:, 0, 0] / 2
    torch.testing.assert_close(found.sigmoid(), expected)
    assert found.isfinite().all()
