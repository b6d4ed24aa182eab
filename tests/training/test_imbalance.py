"""Classes of unequal size: their weights in the loss, and how often each is sampled."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuscale.config import Config, compose_config
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.loaders.choose import choose_loader, create_loader
from neuscale.data.loaders.loader import Batch
from neuscale.data.prepare import prepare
from neuscale.data.sampling import balanced_order
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.training.loss import batch_loss, class_weights
from neuscale.training.trainer import Trainer

CPU = torch.device("cpu")


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_every_class_has_its_share_and_its_images_come_in_turns(
    counts: list[int], seed: int, epoch: int
) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    order = balanced_order(seed, epoch, labels)
    assert order.shape == labels.shape
    np.testing.assert_array_equal(order, balanced_order(seed, epoch, labels))
    present = [label for label, count in enumerate(counts) if count]
    shares = Counter(labels[order].tolist())
    assert max(shares.values(), default=0) - min(shares[label] for label in present) <= 1
    for label in present:
        uses = Counter(int(i) for i in order if labels[i] == label)
        often = [uses[int(i)] for i in np.flatnonzero(labels == label)]
        assert max(often) - min(often) <= 1, "no image again before the others of its class"


def test_orders_of_epochs_and_seeds_are_others_and_uniform_over_positions() -> None:
    labels = np.repeat([0, 1, 2], [40, 10, 4])
    orders = [balanced_order(7, epoch, labels) for epoch in range(400)]
    assert len({order.tobytes() for order in orders}) == 400
    assert balanced_order(8, 0, labels).tobytes() != orders[0].tobytes()
    # At each position every class is equally likely: 18 of 54.
    share = np.mean([labels[order] == 2 for order in orders], axis=0)
    assert np.abs(share - 1 / 3).max() < 5 * np.sqrt(1 / 3 * 2 / 3 / 400)
    # Each epoch leaves out other images of the large class: 18 of 40 are used.
    taken = np.bincount(np.concatenate(orders), minlength=54)[:40] / 400
    assert np.abs(taken - 18 / 40).max() < 5 * np.sqrt(18 / 40 * 22 / 40 / 400)


@pytest.mark.parametrize("words", [[], ["augment.mixup_alpha=0.8"]], ids=["alone", "mixed"])
def test_loaders_and_processes_agree_on_the_images(
    build_image_tree: Callable[..., Path], tmp_path: Path, words: list[str]
) -> None:
    tree = build_image_tree(tmp_path / "tree", classes=("a", "b"), train=8, val=1)
    for path in sorted((tree / "train" / "a").iterdir())[2:]:
        path.unlink()
    packed = prepare("image_folder", root=tmp_path, source=tree, save_as="x")
    listed = list_images("image_folder", root=tmp_path, source=tree, save_as="x")
    augment = compose_config(["augment=none", *words]).augment
    found: list[list[Batch]] = []
    for data, kind, ranks in (
        (packed, "resident", 1),
        (packed, "stream", 1),
        (listed, "files", 1),
        (packed, "resident", 2),
    ):
        config = compose_config(
            ["data.name=x", "data.sampler=balanced", f"data.loader={kind}", "data.workers=0"]
        )
        choice = choose_loader(config.data, data, CPU)
        steps: list[list[Batch]] = [[], []]
        for rank in range(ranks):
            loader = create_loader(choice, config.data, data, "train", CPU, Rank(rank, ranks))
            for step, batches in enumerate(loader.training(augment, 5, 1, 0, 2, 4)):
                steps[step] += batches
        found.append([batch for step in steps for batch in step])
    whole = [torch.cat([batch.images for batch in batches]) for batches in found]
    assert all(images.equal(whole[0]) for images in whole)
    labels = torch.cat([batch.labels for batch in found[0]])
    order = balanced_order(5, 1, packed.labels("train"))[:8]
    assert labels.tolist() == packed.labels("train")[order].tolist()
    assert len(set(order.tolist())) < 8, "an image of the small class is there twice"


def test_a_run_is_trained_on_the_balanced_order(build_trainer: Callable[..., Trainer]) -> None:
    trainer = build_trainer("data.sampler=balanced", "run.seed=3")
    labels = trainer.loader.labels.numpy()
    np.testing.assert_array_equal(trainer.loader.order(3, 2), balanced_order(3, 2, labels))


def test_weights_of_classes() -> None:
    counts = [6, 3, 1]
    assert class_weights("none", counts, CPU) is None
    balanced = class_weights("balanced", counts, CPU)
    assert balanced is not None and balanced.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert sum(w * n for w, n in zip(balanced.tolist(), counts, strict=True)) == pytest.approx(10)
    for text in ("[1,2.5,4]", "1,2.5,4", "[1, 2.5, 4]"):
        weights = class_weights(text, counts, CPU)
        assert weights is not None and weights.tolist() == [1, 2.5, 4]
    for text in ("balance", "[1,2]", "[1,2,0]", "[1,2,-1]", "[1,2,inf]", "[1,2,nan]", "[]", ""):
        with pytest.raises(UsageError, match=r"train\.class_weights="):
            class_weights(text, counts, CPU)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mixed", [False, True])
def test_an_image_counts_by_the_weight_of_its_class(smoothing: float, mixed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    labels, partners = (torch.randint(0, 3, (8,), generator=generator) for _ in range(2))
    own = torch.rand(8, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    batch = Batch(
        torch.zeros(8, 1, 1, 1),
        labels,
        torch.arange(8),
        0,
        slice(0, 8),
        partners if mixed else None,
        own if mixed else None,
    )
    logs = logits - logits.exp().sum(1, keepdim=True).log()

    def one(i: int, label: int) -> float:
        smooth = sum(float(weights[c] * logs[i, c]) for c in range(3)) / 3
        return -(1 - smoothing) * float(weights[label] * logs[i, label]) - smoothing * smooth

    expected = [
        float(own[i]) * one(i, int(labels[i])) + (1 - float(own[i])) * one(i, int(partners[i]))
        if mixed
        else one(i, int(labels[i]))
        for i in range(8)
    ]
    found = batch_loss(logits, batch, smoothing, weights)
    assert float(found) == pytest.approx(sum(expected) / 8)
    # The mean over parts of the batch is the same, although their weights have other sums.
    parts = batch.split(4)
    of_parts = [
        batch_loss(part_logits, part, smoothing, weights)
        for part_logits, part in zip(logits.split(2), parts, strict=True)
    ]
    assert float(torch.stack(of_parts).mean()) == pytest.approx(float(found))


def test_the_weights_of_a_run_are_those_of_its_training_images(
    build_trainer: Callable[..., Trainer], tiny: Callable[..., Config]
) -> None:
    trainer = build_trainer("train.class_weights=[1,3,5]")
    assert trainer.loss.weights is not None and trainer.loss.weights.tolist() == [1, 3, 5]
    trainer = build_trainer("train.class_weights=balanced")
    assert trainer.loss.weights is not None and trainer.loss.weights.tolist() == [1, 1, 1]
    seen: list[Any] = []
    trainer.loss.weights = torch.tensor([0.0, 0.0, 0.0])
    (batches,) = trainer.loader.training(trainer.config.augment, 0, 0, 0, 1, 12, trainer.accumulation.steps)
    seen.append(float(trainer.forward_backward(batches)[0]))
    assert seen == [0.0], "the loss of a step has them"
