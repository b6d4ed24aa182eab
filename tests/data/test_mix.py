"""Mixup and CutMix: partners, weights and boxes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuscale.data.augment.mixing import Mix, beta_quantile, draw_mix, mix_images

CPU = torch.device("cpu")


@given(batch=st.integers(2, 40), batches=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_partner_is_another_image_of_the_same_batch_and_everybody_is_one(
    batch: int, batches: int, seed: int
) -> None:
    count = batch * batches
    mix = draw_mix(0.2, 1.0, seed, 0, count, batch, (8, 8), CPU)
    place = torch.arange(count)
    assert torch.equal(mix.partner // batch, place // batch)
    assert (mix.partner != place).all()
    assert mix.partner.sort().values.equal(place)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    uniform = (np.arange(100_000) + 0.5) / 100_000
    ours = beta_quantile(alpha, uniform)
    theirs = np.random.default_rng(0).beta(alpha, alpha, 400_000)
    probabilities = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(
        np.quantile(ours, probabilities), np.quantile(theirs, probabilities), atol=0.01
    )
    assert ours.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.02)


def test_mixup_blends_by_the_share() -> None:
    images, partners = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    share = torch.tensor([1.0, 0.25, 0.0])
    mixed = mix_images(images, partners, Mix(torch.zeros(3), share, torch.zeros(3, 4, dtype=torch.int64)))
    expected = share[:, None, None, None] * images + (1 - share[:, None, None, None]) * partners
    assert torch.allclose(mixed, expected)
    assert torch.equal(mixed[0], images[0])


def test_cutmix_takes_a_box_and_the_share_is_what_is_left() -> None:
    mix = draw_mix(0.0, 1.0, 0, 0, 2000, 100, (12, 10), CPU)
    own, other = torch.zeros(2000, 1, 12, 10), torch.ones(2000, 1, 12, 10)
    mixed = mix_images(own, other, mix)
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(1 - mixed.mean((1, 2, 3)), mix.weight, atol=1e-6)
    for i in range(20):
        top, bottom, left, right = mix.box[i].tolist()
        assert mixed[i, 0, top:bottom, left:right].eq(1).all()
        assert mixed[i].sum() == (bottom - top) * (right - left)
    assert 0.4 < mix.weight.mean() < 0.8


def test_without_alphas_nothing_is_mixed() -> None:
    mix = draw_mix(0.0, 0.0, 0, 0, 50, 10, (8, 8), CPU)
    assert (mix.weight == 1).all()
    images, partners = torch.rand(50, 3, 8, 8), torch.rand(50, 3, 8, 8)
    assert torch.equal(mix_images(images, partners, mix), images)


def test_with_both_alphas_half_the_images_take_each() -> None:
    mix = draw_mix(0.8, 1.0, 0, 0, 10_000, 100, (32, 32), CPU)
    cut = (mix.box[:, 1] > mix.box[:, 0]).float().mean()
    assert 0.45 < cut < 0.52  # a few of the CutMix boxes are empty
