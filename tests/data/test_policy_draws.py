"""RandAugment's and TrivialAugment's choices and colour jitter's factors are drawn as in their papers."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.pipeline import Augmentation, draw_augmentation
from neuscale.data.augment.policy import BINS, OPERATIONS

from .chance import (
    assert_all_independent,
    assert_distributed,
    assert_frequency,
    assert_independent,
    assert_uniform,
    uniform_between,
)
from .test_policy import NAMES

CPU = torch.device("cpu")
COUNT = 30_000
SIZE = (24, 40)  # unequal, so that a vertical shift must be scaled by the height
SIGNED = [name for name in NAMES.values() if RandAugment()._AUGMENTATION_SPACE[name][1]]


def drawn(**options: object) -> Augmentation:
    config = AugmentConfig(**options)  # type: ignore[arg-type]
    return draw_augmentation(config, 0, 0, COUNT, 100, SIZE, CPU)


def magnitudes(peer: RandAugment | TrivialAugmentWide, name: str) -> torch.Tensor:
    """Return torchvision's strength in each of the 31 bins: shifts in whole pixels, thresholds out of 255."""
    table = peer._AUGMENTATION_SPACE[name][0](BINS, *SIZE)
    if table is None:
        return torch.zeros(BINS)
    strengths = torch.as_tensor(table, dtype=torch.float32)
    if name.startswith("Translate"):
        return strengths.trunc()
    return strengths / strengths.max() * 255 if name == "Solarize" else strengths


def test_randaugment_draws_each_layers_operation_and_sign_at_the_one_magnitude() -> None:
    layers = drawn(policy="randaugment", policy_layers=3, policy_magnitude=17).policy
    assert len(layers) == 3
    columns = {}
    for number, layer in enumerate(layers):
        assert_uniform(layer.operation.numpy(), OPERATIONS)
        for operation, name in NAMES.items():
            strength = layer.strength[layer.operation == operation]
            expected = magnitudes(RandAugment(), name)[17]
            assert torch.allclose(strength.abs(), expected.expand_as(strength)), name
            if name in SIGNED:
                assert_frequency((strength < 0).numpy(), 0.5)
            else:
                assert (strength >= 0).all(), name
        signed = torch.tensor([name in SIGNED for name in NAMES.values()])[layer.operation]
        # An operation without a direction hides its sign, so those images are left out.
        columns[f"operation {number}"] = layer.operation.numpy()
        columns[f"sign {number}"] = torch.where(signed, (layer.strength < 0).long(), 2).numpy()
        told = signed.numpy()
        assert_independent(layer.operation.numpy()[told], (layer.strength < 0).long().numpy()[told])
    for one in range(3):
        for other in range(one):
            assert_independent(columns[f"operation {one}"], columns[f"operation {other}"])
            both = (columns[f"sign {one}"] < 2) & (columns[f"sign {other}"] < 2)
            assert_independent(columns[f"sign {one}"][both], columns[f"sign {other}"][both])
            assert_independent(columns[f"operation {one}"], columns[f"sign {other}"])


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_randaugment_has_as_many_layers_as_are_asked_for(layers: int) -> None:
    assert len(drawn(policy="randaugment", policy_layers=layers).policy) == layers


def test_no_policy_has_no_layers() -> None:
    assert drawn(policy="none", policy_layers=3).policy == []


def test_trivialaugment_draws_one_operation_at_any_strength() -> None:
    """TrivialAugment has one layer, whatever RandAugment's fields are, and all 31 bins are equally likely."""
    (layer,) = drawn(policy="trivialaugment", policy_layers=3, policy_magnitude=3).policy
    assert_uniform(layer.operation.numpy(), OPERATIONS)
    for operation, name in NAMES.items():
        strength = layer.strength[layer.operation == operation]
        values, bins_of_value = magnitudes(TrivialAugmentWide(), name).unique(return_counts=True)
        found = torch.isclose(strength.abs()[:, None], values, atol=1e-5)
        assert (found.sum(1) == 1).all(), name
        share = bins_of_value / BINS
        deviation = (share * (1 - share) / len(strength)).sqrt()
        assert ((found.float().mean(0) - share).abs() <= 4.5 * deviation).all(), name
        if name in SIGNED:
            assert_frequency((strength[strength != 0] < 0).numpy(), 0.5)
    for name in ("ShearX", "Rotate", "Color", "Sharpness", "Solarize"):
        operation = next(number for number, known in NAMES.items() if known == name)
        strength = layer.strength[layer.operation == operation]
        top = float(magnitudes(TrivialAugmentWide(), name).max())
        bins = (strength.abs() / top * (BINS - 1)).round().long().numpy()
        assert_uniform(bins, BINS)
        if name in SIGNED:
            nonzero = strength != 0
            assert_independent(bins[nonzero.numpy()] // 4, (strength[nonzero] < 0).long().numpy())


def test_jitter_changes_are_uniform_in_their_ranges_and_independent() -> None:
    jitter = drawn(brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1).jitter
    assert jitter is not None
    values = {}
    # A factor is at least 0, so a saturation of ± 1.5 means 0 … 2.5.
    ranges = {
        "brightness": (-0.4, 0.4),
        "contrast": (-0.3, 0.3),
        "saturation": (-1.0, 1.5),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in ranges.items():
        drawn_part = getattr(jitter, name)
        values[name] = drawn_part.double().numpy()
        assert_distributed(values[name], uniform_between(low - 1e-6, high + 1e-6), slack=1e-4)
    assert_all_independent(values)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_kind_of_jitter_comes_alone(name: str) -> None:
    jitter = drawn(**{name: 0.2}).jitter
    assert jitter is not None
    for part in ("brightness", "contrast", "saturation", "hue"):
        values = getattr(jitter, part)
        assert (values is None) == (part != name)
    assert np.abs(getattr(jitter, name).numpy()).max() <= 0.2 + 1e-6
    assert drawn().jitter is None
