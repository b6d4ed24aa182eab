"""The loss of mixed images is that of their soft targets."""

import pytest
import torch
import torch.nn.functional as F

from neuscale.data.loaders.loader import Batch
from neuscale.training.loss import batch_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_the_cross_entropy_with_both_labels_by_their_shares(smoothing: float) -> None:
    logits = torch.randn(6, 5)
    labels, partners = torch.randint(0, 5, (6,)), torch.randint(0, 5, (6,))
    shares = torch.rand(6)
    batch = Batch(torch.empty(6, 1, 1, 1), labels, torch.arange(6), 0, slice(0, 6), partners, shares)
    targets = shares[:, None] * F.one_hot(labels, 5) + (1 - shares[:, None]) * F.one_hot(partners, 5)
    expected = F.cross_entropy(logits, targets * (1 - smoothing) + smoothing / 5)
    assert batch_loss(logits, batch, smoothing) == pytest.approx(expected.item(), rel=1e-5)


def test_images_that_are_not_mixed_have_the_plain_loss() -> None:
    logits, labels = torch.randn(6, 5), torch.randint(0, 5, (6,))
    batch = Batch(torch.empty(6, 1, 1, 1), labels, torch.arange(6), 0, slice(0, 6))
    assert torch.equal(batch_loss(logits, batch, 0.1), F.cross_entropy(logits, labels, label_smoothing=0.1))
