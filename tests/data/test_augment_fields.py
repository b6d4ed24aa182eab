"""Every field of `augment` changes what a loader draws, by the amount that the field sets."""

import dataclasses
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.crops import Rows
from neuscale.data.augment.pipeline import Augmentation, draw_augmentation
from neuscale.data.augment.policy import ROTATE, SHEAR_X, TRANSLATE_X, TRANSLATE_Y
from neuscale.data.loaders.loader import Batch, Loader, Request
from neuscale.distributed.rank import Rank

COUNT, HEIGHT, WIDTH = 6000, 20, 12
MANY: dict[str, Any] = {
    "seed": 3,
    "epoch": 1,
    "positions": COUNT,
    "global_batch_size": 50,
    "size": (HEIGHT, WIDTH),
}


def drawn(**fields: Any) -> Augmentation:
    return draw_augmentation(AugmentConfig(**fields), **MANY, device=torch.device("cpu"))


class SeenLoader(Loader):
    """Loader of 40 colour images of 16×16 pixels that records its requests."""

    kind = "seen"

    def __init__(self) -> None:
        meta: Any = types.SimpleNamespace(
            name="seen", height=16, width=16, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]
        )
        super().__init__(meta, np.arange(40) % 7, None, torch.device("cpu"), Rank())
        pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
        self.pixels = torch.from_numpy(pixels)
        self.requests: list[Request] = []

    @property
    def stored_size(self) -> tuple[int, int]:
        return 16, 16

    def _read(self, requests: Iterable[Request]) -> Iterator[Rows]:
        for request in requests:
            self.requests.append(request)
            yield Rows(self.pixels, torch.from_numpy(request.samples))


def first_batch(**fields: Any) -> tuple[Batch, list[Request]]:
    loader = SeenLoader()
    ((batch,),) = loader.training(AugmentConfig(**fields), 3, 1, 0, 1, 40)
    return batch, loader.requests


# A value for each field, and the other fields that it needs to take effect.
FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "crop_padding": (3, {}),
    "resized_crop": (0.3, {}),
    "horizontal_flip": (0.2, {}),
    "policy": ("randaugment", {}),
    "policy_layers": (3, {"policy": "randaugment"}),
    "policy_magnitude": (20, {"policy": "randaugment"}),
    "brightness": (0.4, {}),
    "contrast": (0.6, {}),
    "saturation": (0.8, {}),
    "hue": (0.25, {}),
    "erasing": (0.3, {}),
    "mixup_alpha": (0.2, {}),
    "cutmix_alpha": (1.0, {}),
}


def test_every_field_has_a_value_here() -> None:
    own = {"function", "function_draws"}  # set to the user's own code: tests/project/test_own_parts.py
    assert {*FIELDS, *own} == {field.name for field in dataclasses.fields(AugmentConfig)}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_changes_the_batches(field: str) -> None:
    """Each field has an effect on the images or, for `resized_crop`, on the requested windows."""
    value, needed = FIELDS[field]
    without, asked_without = first_batch(**needed)
    batch, asked = first_batch(**needed, **{field: value})
    assert torch.equal(batch.samples, without.samples), "the order is not augmentation's"
    if field == "resized_crop":  # the loader of image files cuts these windows
        assert asked_without[0].windows is None
        assert asked[0].windows is not None
    else:
        assert not torch.equal(batch.images, without.images)


def test_without_any_field_images_are_only_normalised() -> None:
    batch, (request,) = first_batch()
    loader = SeenLoader()
    mean, std = (np.array(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    expected = (loader.pixels[batch.samples].double().numpy() / 255 - mean) / std
    np.testing.assert_allclose(batch.images.numpy(), expected, atol=1e-5)
    assert request.windows is None
    assert batch.mix_weights is None and batch.partner_labels is None


def test_crops_are_uniform_over_the_padding_on_both_axes() -> None:
    crops = drawn(crop_padding=3).crops
    assert crops.padding == 3
    for offsets in (crops.top, crops.left):
        counts = np.bincount(offsets.numpy(), minlength=7)
        assert len(counts) == 7
        assert np.abs(counts - COUNT / 7).max() < 5 * (COUNT / 7) ** 0.5
    assert abs(np.corrcoef(crops.top, crops.left)[0, 1]) < 5 / COUNT**0.5
    assert set(drawn().crops.top.tolist()) == set(drawn().crops.left.tolist()) == {0}


@pytest.mark.parametrize("probability", [0.2, 0.9])
def test_so_many_images_are_mirrored_and_so_many_erased(probability: float) -> None:
    spread = 5 * (probability * (1 - probability) / COUNT) ** 0.5
    aug = drawn(horizontal_flip=probability, erasing=probability)
    assert abs(aug.crops.flip.double().mean() - probability) < spread
    assert aug.erasing is not None
    box = aug.erasing.box
    assert abs((box[:, 1] > box[:, 0]).double().mean() - probability) < spread
    assert drawn(horizontal_flip=probability).erasing is None


def test_the_window_of_a_resized_crop_has_at_least_the_area_that_is_asked_for() -> None:
    loader = SeenLoader()
    for epoch in range(100):
        list(loader.training(AugmentConfig(resized_crop=0.3), 0, epoch, 0, 1, 40))
    windows = np.concatenate([request.windows for request in loader.requests if request.windows is not None])
    area = windows[:, 0]
    assert len(area) == 4000
    assert 0.3 <= area.min() < 0.31
    assert 0.99 < area.max() <= 1
    assert abs(area.mean() - 0.65) < 5 * 0.7 / 12**0.5 / 4000**0.5


def test_a_policy_has_the_layers_and_the_strength_that_are_asked_for() -> None:
    assert [len(drawn(policy=name).policy) for name in ("none", "randaugment", "trivialaugment")] == [0, 2, 1]
    layers = drawn(policy="randaugment", policy_layers=3, policy_magnitude=20).policy
    assert len(layers) == 3
    assert not torch.equal(layers[0].operation, layers[1].operation)
    assert not torch.equal(layers[1].operation, layers[2].operation)
    # Maxima of torchvision's tables: rotation 30°, shear 0.3, translation 150/331 of the side.
    whole = {ROTATE: 30.0, SHEAR_X: 0.3, TRANSLATE_X: 150 / 331 * WIDTH, TRANSLATE_Y: 150 / 331 * HEIGHT}
    for layer in layers:
        for operation, most in whole.items():
            strength = layer.strength[layer.operation == operation]
            expected = most * 20 / 30
            if operation in (TRANSLATE_X, TRANSLATE_Y):
                expected = int(expected)
            assert strength.abs().unique().tolist() == pytest.approx([expected])
            assert 0.3 < (strength > 0).double().mean() < 0.7, "both directions"


def test_a_strength_of_the_policy_is_trivialaugments_own() -> None:
    """TrivialAugment draws a strength for each image and ignores `policy_magnitude` and `policy_layers`."""
    (layer,) = drawn(policy="trivialaugment", policy_magnitude=20, policy_layers=5).policy
    turns = layer.strength[layer.operation == ROTATE].abs()
    assert len(turns.unique()) == 31
    assert turns.max() == 135.0


@pytest.mark.parametrize(
    ("name", "amount", "low"),
    [("brightness", 0.4, -0.4), ("contrast", 0.6, -0.6), ("saturation", 1.5, -1.0), ("hue", 0.25, -0.25)],
)
def test_colours_are_jittered_by_the_amount_of_their_own_field(name: str, amount: float, low: float) -> None:
    jitter = drawn(**{name: amount}).jitter
    assert jitter is not None
    for other in ("brightness", "contrast", "saturation", "hue"):
        change = getattr(jitter, other)
        if other != name:
            assert change is None, other
            continue
        assert low <= change.min() < low + 0.01
        assert amount - 0.01 < change.max() <= amount
    assert drawn().jitter is None


def test_mixup_and_cutmix_have_the_shares_of_their_own_field() -> None:
    """Mixup's weight has the variance of Beta(a, a), 1 / (4 (2 a + 1)); CutMix's weight follows its box."""
    assert drawn().mix is None
    for alpha in (0.2, 5.0):
        mixup = drawn(mixup_alpha=alpha).mix
        assert mixup is not None
        assert mixup.box.sum() == 0
        assert abs(mixup.weight.double().mean() - 0.5) < 5 * 0.5 / COUNT**0.5
        assert mixup.weight.double().var() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)
        cutmix = drawn(cutmix_alpha=alpha).mix
        assert cutmix is not None
        top, bottom, left, right = cutmix.box.unbind(1)
        area = (bottom - top) * (right - left)
        assert (area > 0).double().mean() > 0.4
        torch.testing.assert_close(cutmix.weight, (1 - area / (HEIGHT * WIDTH)).float())
    # A box has a uniform centre and is clipped at the border: its mean weight is far from Beta's where Beta
    # is wide, but with a growing alpha the area before clipping approaches a half.
    narrow, wide = (drawn(cutmix_alpha=alpha).mix for alpha in (20.0, 0.2))
    assert narrow is not None and wide is not None
    assert narrow.weight.var() < wide.weight.var() / 2
    both = drawn(mixup_alpha=0.8, cutmix_alpha=1.0).mix
    assert both is not None
    cut = (both.box[:, 1] > both.box[:, 0]).double().mean()
    assert 0.4 < cut < 0.5 + 5 * 0.5 / COUNT**0.5, "a coin decides, and some boxes are empty"


def test_what_is_drawn_for_one_field_is_left_alone_by_the_others() -> None:
    """Draws of one field do not depend on the others: erasing changes nothing else in a run."""
    alone = drawn(crop_padding=3, horizontal_flip=0.5)
    among = drawn(
        crop_padding=3, horizontal_flip=0.5, erasing=0.5, hue=0.1, mixup_alpha=1.0, policy="randaugment"
    )
    assert torch.equal(alone.crops.top, among.crops.top)
    assert torch.equal(alone.crops.left, among.crops.left)
    assert torch.equal(alone.crops.flip, among.crops.flip)
