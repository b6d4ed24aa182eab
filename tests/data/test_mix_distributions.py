"""Mixup's and CutMix's weights, boxes and partners are distributed as in their papers."""

import math

import numpy as np
import pytest
import torch

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment import mixing as mix
from neuscale.data.augment.mixing import Mix, mix_partners
from neuscale.data.augment.pipeline import draw_augmentation
from neuscale.data.sampling import Positions, first_and_count

from .chance import (
    assert_all_independent,
    assert_distributed,
    assert_frequency,
    assert_independent,
    assert_uniform,
    uniform_between,
)

CPU = torch.device("cpu")
COUNT = 20_000


def drawn(size: tuple[int, int] = (12, 8), batch: int = 100, **alphas: float) -> Mix:
    found = draw_augmentation(AugmentConfig(**alphas), 0, 0, COUNT, batch, size, CPU).mix
    assert found is not None
    return found


def centred_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Centre all CutMix boxes, so that none is clipped at a border."""

    def integer_draws(_seed: int, _epoch: int, purpose: str, positions: Positions, below: int) -> object:
        centre = below // 2 if purpose in ("mix row", "mix column") else 0
        return np.full(first_and_count(positions)[1], centre, dtype=np.int64)

    monkeypatch.setattr(mix, "integer_draws", integer_draws)


def beta_moments(values: torch.Tensor, alpha: float) -> None:
    """Assert the mean, variance and fourth central moment of Beta(alpha, alpha)."""
    centred = values.double() - 0.5
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(centred.mean()) < 4.5 * math.sqrt(variance / len(values))
    assert centred.pow(2).mean() == pytest.approx(variance, rel=0.03)
    assert centred.pow(4).mean() == pytest.approx(fourth, rel=0.05)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.5])
def test_mixups_shares_have_the_moments_of_their_beta(alpha: float) -> None:
    found = drawn(mixup_alpha=alpha)
    beta_moments(found.weight, alpha)
    assert not found.box.any()


def test_cutmixs_boxes_leave_a_share_with_the_moments_of_its_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    centred_boxes(monkeypatch)
    found = drawn((800, 600), cutmix_alpha=2.5)
    beta_moments(found.weight, 2.5)
    top, bottom, left, right = found.box.double().unbind(1)
    # A box has the aspect ratio of the image: height and width are scaled by the same factor.
    assert ((bottom - top) / 800 - (right - left) / 600).abs().max() < 1 / 200
    area = (bottom - top) * (right - left) / (800 * 600)
    assert (1 - area - found.weight).abs().max() < 1e-6


def test_with_both_alphas_each_half_has_its_own_beta(monkeypatch: pytest.MonkeyPatch) -> None:
    centred_boxes(monkeypatch)
    found = drawn((800, 600), mixup_alpha=0.2, cutmix_alpha=2.5)
    cut = found.box[:, 1] > found.box[:, 0]
    assert_frequency(cut.numpy(), 0.5)
    beta_moments(found.weight[cut], 2.5)
    beta_moments(found.weight[~cut], 0.2)
    assert_independent(cut[1:].numpy().astype(int), cut[:-1].numpy().astype(int))


def test_a_box_is_about_a_centre_that_is_any_pixel_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a weight of 3/4 the box has half the sides: ± 3 rows and ± 2 columns of 12×8 pixels."""
    monkeypatch.setattr(mix, "beta_quantile", lambda _alpha, uniform: np.full_like(uniform, 0.75))
    found = drawn((12, 8), cutmix_alpha=1.0)
    top, bottom, left, right = found.box.numpy().T
    row = np.where(top > 0, top + 3, bottom - 3)
    column = np.where(left > 0, left + 2, right - 2)
    assert np.array_equal(top, np.maximum(row - 3, 0))
    assert np.array_equal(bottom, np.minimum(row + 3, 12))
    assert np.array_equal(left, np.maximum(column - 2, 0)) and np.array_equal(
        right, np.minimum(column + 2, 8)
    )
    assert_uniform(row * 8 + column, 12 * 8)
    share = 1 - (bottom - top) * (right - left) / 96
    assert np.abs(found.weight.numpy() - share).max() < 1e-6


def test_a_boxs_size_its_row_and_its_column_are_independent() -> None:
    """The position of a box that no border clips is uniform over the room that its size leaves."""
    found = drawn((64, 48), cutmix_alpha=1.0)
    top, bottom, left, right = found.box.double().unbind(1)
    inside = (top > 0) & (bottom < 64) & (left > 0) & (right < 48) & (bottom > top)
    assert inside.sum() > 3000
    places = {
        "row": ((top - 0.5) / (63 - bottom + top))[inside].numpy(),
        "column": ((left - 0.5) / (47 - right + left))[inside].numpy(),
    }
    for values in places.values():
        assert_distributed(values, uniform_between(0, 1), slack=0.04)
    assert_all_independent({**places, "share": found.weight[inside].double().numpy()}, bins=4)


def test_partners_are_at_any_distance_equally_often_and_a_batchs_says_nothing_of_the_next() -> None:
    count, batch = 9000, 9
    position = np.arange(count)
    for seed, epoch in ((0, 0), (0, 1), (5, 0)):
        partner = mix_partners(seed, epoch, count, batch)
        distance = ((partner - position) % batch).reshape(-1, batch)
        assert (distance == distance[:, :1]).all()
        assert_uniform(distance[:, 0] - 1, batch - 1)
        assert_independent(distance[:-1, 0], distance[1:, 0])
    first, other = mix_partners(0, 0, count, batch), mix_partners(0, 1, count, batch)
    assert_independent((first - position)[::batch] % batch, (other - position)[::batch] % batch)
    assert np.array_equal(drawn(batch=50, mixup_alpha=1.0).partner.numpy(), mix_partners(0, 0, COUNT, 50))
