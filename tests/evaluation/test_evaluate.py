"""Metrics of an evaluation, against the same sums computed by hand."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuscale.data.loaders.loader import Batch
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.progress import Silent


class Table(nn.Module):
    """Model that returns stored logits; image i has the single pixel value i."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return self.logits[images.flatten().long()]


def run(logits: Tensor, labels: Tensor, sizes: list[int]) -> Evaluation:
    model = Table(logits).train()
    images = torch.arange(len(labels)).float()[:, None, None, None]
    parts = zip(images.split(sizes), labels.split(sizes), strict=True)
    batches = [Batch(image, label, image.flatten().long(), 0, slice(0, 0)) for image, label in parts]
    result = evaluate(
        model, batches, logits.shape[1], torch.device("cpu"), nullcontext, Silent(), total=len(labels)
    )
    assert model.training, "training would go on without dropout"
    return result


@pytest.mark.parametrize("sizes", [[100], [33, 33, 33, 1], [1] * 100], ids=["whole", "rest", "ones"])
@pytest.mark.parametrize("classes", [2, 5, 10])
def test_numbers_do_not_depend_on_the_batches(sizes: list[int], classes: int) -> None:
    """Images of a short last batch get no more weight than others, as they would in a mean of batch means."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(100, classes, generator=generator) * 3
    labels = torch.randint(classes, (100,), generator=generator)
    result = run(logits, labels, sizes)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert result.samples == 100
    assert result.top1 == pytest.approx(float((ranks < 1).float().mean()))
    assert result.top5 == pytest.approx(float((ranks < 5).float().mean()))
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    for true in range(classes):
        for predicted in range(classes):
            count = int(((labels == true) & (logits.argmax(1) == predicted)).sum())
            assert int(result.confusion[true, predicted]) == count


def test_accuracy_of_each_class() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    predicted = torch.tensor([0, 0, 1, 1])
    result = run(F.one_hot(predicted, 4).float(), labels, [4])
    assert result.per_class() == [pytest.approx(2 / 3), None, 0.0, None]


def test_a_diverged_model_has_no_good_loss() -> None:
    """A loss of NaN is reported; left out of the sum, it would make the model look perfect."""
    logits = torch.full((4, 3), torch.nan)
    assert not run(logits, torch.zeros(4, dtype=torch.long), [4]).loss < 100
