"""The multi-label loss and the focal loss match their formulas."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from neuscale.config.schema import EvalConfig
from neuscale.data.loaders.loader import Batch
from neuscale.errors import UsageError
from neuscale.evaluation.multi_label import evaluate_scores
from neuscale.training.loss import batch_loss, batch_sums, class_weights
from neuscale.training.outcome import BestSoFar
from neuscale.training.trainer import Trainer

CPU = torch.device("cpu")
TABLE = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)


def batch_of(labels: torch.Tensor, partners: torch.Tensor | None, shares: torch.Tensor | None) -> Batch:
    count = len(labels)
    return Batch(
        torch.empty(count, 1, 1, 1), labels, torch.arange(count), 0, slice(0, count), partners, shares
    )


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_class_is_a_question_of_its_own(
    gamma: float, smoothing: float, mixed: bool, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64) * 3
    labels, partners = (torch.randint(0, 4, (6,), generator=generator) for _ in range(2))
    shares = torch.rand(6, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64) if weighted else None

    def one(i: int, label: int) -> float:
        total = 0.0
        for c in range(3):
            probability = 1 / (1 + math.exp(-float(logits[i, c])))
            yes = float(TABLE[label, c])
            target = yes * (1 - smoothing) + smoothing / 2
            weight = float(weights[c]) if weights is not None else 1.0
            loss = -weight * target * math.log(probability) - (1 - target) * math.log(1 - probability)
            total += (1 - (probability if yes else 1 - probability)) ** gamma * loss
        return total / 3

    def mixture(i: int) -> float:
        own = one(i, int(labels[i]))
        if not mixed:
            return own
        return float(shares[i]) * own + (1 - float(shares[i])) * one(i, int(partners[i]))

    batch = batch_of(labels, partners if mixed else None, shares if mixed else None)
    found = batch_loss(logits, batch, smoothing, weights, gamma, TABLE)
    assert float(found) == pytest.approx(sum(map(mixture, range(6))) / 6)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_focal_loss_is_that_of_its_paper(mixed: bool) -> None:
    """Equation 4 of Lin et al. 2017, with the softmax: (1 - p)^gamma times -log p."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    labels, partners = (torch.randint(0, 4, (6,), generator=generator) for _ in range(2))
    shares = torch.rand(6, generator=generator, dtype=torch.float64)
    p = logits.softmax(1)

    def focal(right: torch.Tensor) -> torch.Tensor:
        chosen = p[torch.arange(6), right]
        return -((1 - chosen) ** 1.5) * chosen.log()

    expected = focal(labels)
    if mixed:
        expected = shares * expected + (1 - shares) * focal(partners)
    batch = batch_of(labels, partners if mixed else None, shares if mixed else None)
    assert float(batch_loss(logits, batch, 0.0, None, 1.5)) == pytest.approx(float(expected.mean()))
    wild = torch.tensor([[400.0, -400.0], [-400.0, 400.0]], requires_grad=True)
    loss = batch_loss(wild, batch_of(torch.tensor([0, 0]), None, None), 0.0, None, 2.0)
    loss.backward()
    assert wild.grad is not None and wild.grad.isfinite().all()


def test_training_accuracy_is_the_share_of_labels_that_are_right() -> None:
    logits = torch.tensor([[0.0, -1.0, 2.0], [-0.1, 3.0, -2.0]])
    sums = batch_sums(logits, batch_of(torch.tensor([1, 0]), None, None), torch.tensor(0.5), TABLE.float())
    assert sums.tolist() == pytest.approx([1.0, 1 + 2 / 3])
    mixed = batch_of(torch.tensor([1, 0]), torch.tensor([0, 2]), torch.tensor([0.25, 0.5]))
    sums = batch_sums(logits, mixed, torch.tensor(0.5), TABLE.float())
    assert float(sums[1]) == pytest.approx(0.25 + 0.75 / 3 + 0.5 * 2 / 3 + 0.5)


def test_balanced_weights_are_images_without_for_each_with() -> None:
    weights = class_weights("balanced", [10, 50, 100], CPU, several_of=100)
    assert weights is not None and weights.tolist() == [9, 1, 0]
    found = class_weights("[1,2,3]", [10, 50, 100], CPU, several_of=100)
    assert found is not None and found.tolist() == [1, 2, 3]


def test_the_metric_is_one_that_the_data_have() -> None:
    assert BestSoFar(EvalConfig(), None).metric == "top1"
    best = BestSoFar(EvalConfig(), 2, several_labels=True)
    assert best.metric == "map"
    scores = torch.tensor([[1.0], [0.0], [-1.0]])
    bad, good = (
        evaluate_scores(scores, torch.tensor(right)[:, None], 0.1)
        for right in ([False, False, True], [True, False, False])
    )
    assert [best.update(each) for each in (bad, good, good, bad)] == [True, True, False, False]
    assert best.value == 1.0 and best.top1 == -1.0 and best.exhausted
    for metric, several in (("top1", True), ("balanced_accuracy", True), ("map", False), ("exact", False)):
        with pytest.raises(UsageError, match=f"eval.metric={metric}: it is not known of images with"):
            BestSoFar(EvalConfig(metric=metric), None, several)


def test_a_step_has_the_focal_loss(build_trainer: Callable[..., Trainer]) -> None:
    def loss_of(*words: str) -> float:
        trainer = build_trainer("model.dropout=0", "model.drop_path_rate=0", *words)
        augment, parts = trainer.config.augment, trainer.accumulation.steps
        (batches,) = trainer.loader.training(augment, 0, 0, 0, 1, 12, parts)
        with torch.no_grad():
            logits = torch.cat([trainer.raw_model(batch.images) for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        plain = F.cross_entropy(logits, labels, reduction="none")
        found = float(trainer.forward_backward(batches)[0])
        gamma = trainer.config.train.focal_gamma
        assert found == pytest.approx(float(((1 - (-plain).exp()) ** gamma * plain).sum()), rel=1e-4)
        return found

    assert loss_of("train.focal_gamma=2") < loss_of()
