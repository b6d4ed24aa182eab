"""Every random choice has its own stream; no two streams are equal or correlated."""

import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from neuscale.config.schema import AugmentConfig
from neuscale.data import sampling
from neuscale.data.augment.crops import draw_windows
from neuscale.data.augment.pipeline import draw_augmentation
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.loaders.image_files import FileLoader
from neuscale.data.loaders.resident import ResidentLoader
from neuscale.data.sampling import derived_seed, integer_draws, permutation, raw_draws, uniform_draws
from neuscale.distributed.rank import Rank
from neuscale.models.layers import BRANCHES, DropPath
from neuscale.training.drop_path import DropPathDraws

from .chance import assert_all_independent, assert_frequency, assert_uncorrelated

CPU = torch.device("cpu")
EVERYTHING = AugmentConfig(
    crop_padding=4,
    horizontal_flip=0.5,
    policy="randaugment",
    policy_layers=8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erasing=0.25,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)
Key = tuple[int, int, str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Key]]:
    """The (seed, epoch, purpose) of every draw."""
    keys: list[Key] = []

    def recorded(seed: int, epoch: int, purpose: str, count: int) -> object:
        keys.append((seed, epoch, purpose))
        return raw_draws(seed, epoch, purpose, count)

    monkeypatch.setattr(sampling, "raw_draws", recorded)
    yield keys


def draw_everything(seed: int, epoch: int, count: int) -> None:
    """Draw every choice of an epoch once."""
    permutation(seed, epoch, count)
    draw_windows(0.08, seed, epoch, count)
    draw_augmentation(EVERYTHING, seed, epoch, count, 8, (12, 9), CPU)
    model = nn.Sequential(*(DropPath(0.1 * number) for number in range(4)))
    DropPathDraws(model, seed, CPU).set(epoch, slice(0, 4))


def test_no_two_choices_have_the_same_numbers(asked: list[Key]) -> None:
    draw_everything(3, 5, 16)
    assert {key[:2] for key in asked} == {(3, 5)}
    assert [key for key, times in Counter(asked).items() if times > 1] == []
    purposes = {purpose for _, _, purpose in asked}
    # Streams are keyed by the CRC-32 of their name, so no two names may share one.
    assert len({zlib.crc32(purpose.encode()) for purpose in purposes}) == len(purposes)
    asked.clear()
    trivial = AugmentConfig(policy="trivialaugment")
    draw_augmentation(trivial, 3, 5, 16, 8, (12, 9), CPU)
    assert [key for key, times in Counter(asked).items() if times > 1] == []
    assert (3, 5, "policy strength 0") in asked


def test_the_names_of_the_streams_are_those_that_older_runs_were_drawn_with(asked: list[Key]) -> None:
    """Stream names must not change, or `runs replay` of an older run would see other crops."""
    draw_everything(0, 0, 16)
    layers = {f"policy {kind} {layer}" for kind in ("operation", "sign") for layer in range(8)}
    assert {purpose for _, _, purpose in asked} == layers | {
        *("order", "crop top", "crop left", "flip"),
        *("window area", "window ratio", "window row", "window column"),
        *("jitter brightness", "jitter contrast", "jitter saturation", "jitter hue"),
        *("erase", "erase area", "erase ratio", "erase top", "erase left"),
        *("mix share", "mix kind", "mix distance", "mix row", "mix column"),
        *(f"drop path {layer}.{branch}" for layer in range(3) for branch in range(2)),
    }


def test_no_pair_of_streams_is_correlated(asked: list[Key]) -> None:
    """Streams are compared by name, epoch and seed, from the first number on and with a shift of one."""
    draw_everything(0, 0, 16)
    names = sorted({purpose for _, _, purpose in asked})
    count = 3000
    assert_uncorrelated([uniform_draws(0, 0, name, count) for name in names])
    keys = [(seed, epoch) for seed in range(6) for epoch in range(6)] + [(2**40, 0), (0, 9999)]
    for name in ("crop top", "order"):
        streams = [uniform_draws(seed, epoch, name, count) for seed, epoch in keys]
        assert_uncorrelated(streams)
        for one, other in pairwise(streams):
            assert_uncorrelated([one[:-1], one[1:], other[1:]])
    # The first numbers of different streams are as random as the others.
    for firsts in (
        [uniform_draws(seed, 0, "flip", 1)[0] for seed in range(2000)],
        [uniform_draws(0, epoch, "flip", 1)[0] for epoch in range(2000)],
        [uniform_draws(0, 0, f"drop path {layer}.0", 1)[0] for layer in range(2000)],
    ):
        assert np.mean(firsts) == pytest.approx(0.5, abs=4.5 * (1 / 12 / 2000) ** 0.5)
        assert_uncorrelated([firsts[:-1], firsts[1:]])


@given(first=st.integers(0, 10**12), count=st.integers(0, 40), epoch=st.integers(0, 3))
def test_draws_of_any_positions_are_those_of_the_whole_epoch(first: int, count: int, epoch: int) -> None:
    """A rank draws for its own part of a step, wherever that is in an epoch of any length."""
    found = raw_draws(5, epoch, "flip", slice(first, first + count))
    assert len(found) == count
    start = first - first % 1000
    longer = raw_draws(5, epoch, "flip", slice(start, first + count + 3))
    assert np.array_equal(found, longer[first - start : first - start + count])
    if first < 5000:
        assert np.array_equal(found, raw_draws(5, epoch, "flip", first + count)[first:])


@given(start=st.integers(0, 30), stop=st.integers(0, 30))
def test_every_augmentation_of_some_positions_is_that_of_the_epoch(start: int, stop: int) -> None:
    start, stop = sorted((start, stop))
    whole = draw_augmentation(EVERYTHING, 3, 4, 30, 5, (12, 9), CPU)
    part = draw_augmentation(EVERYTHING, 3, 4, slice(start, stop), 5, (12, 9), CPU)
    assert part.first == start
    index = slice(start, stop)
    for name in ("crops", "jitter", "erasing", "mix"):
        for key, value in vars(getattr(whole, name).at(index)).items():
            other = vars(getattr(part, name))[key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    for layer, other in zip(whole.policy, part.policy, strict=True):
        assert torch.equal(layer.operation[index], other.operation)
        assert torch.equal(layer.strength[index], other.strength)
    assert np.array_equal(draw_windows(0.3, 3, 4, 30)[index], draw_windows(0.3, 3, 4, index))


def test_draws_begin_at_the_same_numbers_however_many_are_asked_for() -> None:
    """An image's numbers depend on its position, not on the number of images."""
    few, many = raw_draws(1, 2, "flip", 10), raw_draws(1, 2, "flip", 5000)
    assert np.array_equal(few, many[:10])
    assert np.array_equal(integer_draws(1, 2, "flip", 10, 7), np.floor(uniform_draws(1, 2, "flip", 10) * 7))


def test_what_a_loader_draws_is_that_of_the_runs_seed_and_the_epoch(
    asked: list[Key], both: tuple[PackedDataset, ListedDataset]
) -> None:
    """The draws differ by epoch; otherwise every epoch would show the same crops in the same order."""
    packed, listed = both
    loaders = (
        ResidentLoader(packed, "train", None, CPU, Rank()),
        FileLoader(listed, "train", None, CPU, Rank(), 0),
    )
    for loader in loaders:
        asked.clear()
        augment = EVERYTHING if loader.kind == "resident" else AugmentConfig(resized_crop=0.2)
        [batch] = next(loader.training(augment, 11, 7, 0, 1, 12))
        assert len(asked) >= 5
        assert {key[:2] for key in asked} == {(11, 7)}
        assert batch.samples.tolist() == permutation(11, 7, 60)[:12].tolist()


def test_dropouts_seed_is_another_for_every_seed_step_and_rank() -> None:
    seeds = [
        derived_seed(seed, step, f"dropout {rank}")
        for seed in (0, 1, 2**33)
        for step in range(300)
        for rank in range(8)
    ]
    assert len(set(seeds)) == len(seeds) == 3 * 300 * 8
    assert min(seeds) >= 0 and max(seeds) < 2**63
    assert_frequency(np.array(seeds) >= 2**62, 0.5)
    assert_frequency(np.array(seeds) % 2 == 1, 0.5)


def kept_by(model: nn.Module, seed: int = 0, epoch: int = 0, count: int = 20_000) -> dict[str, np.ndarray]:
    DropPathDraws(model, seed, CPU).set(epoch, slice(0, count))
    return {
        f"{name} {branch}": (layer.scale[branch] > 0).numpy().astype(int)
        for name, layer in model.named_modules()
        if isinstance(layer, DropPath) and layer.rate > 0
        for branch in range(BRANCHES)
    }


def test_each_branch_of_each_layer_drops_its_own_share_of_images() -> None:
    rates = [0.0, 0.1, 0.25, 0.5]
    model = nn.Sequential(*map(DropPath, rates))
    kept = kept_by(model)
    assert len(kept) == 3 * BRANCHES
    for number, rate in list(enumerate(rates))[1:]:
        for branch in range(BRANCHES):
            assert_frequency(kept[f"{number} {branch}"], 1 - rate)
            # Kept branches are scaled up to make up for dropped ones: the mean stays.
            scale = model[number].scale[branch]  # type: ignore[union-attr, index]
            assert scale.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
    assert_all_independent(kept, bins=2)
    again = kept_by(model, epoch=1)
    assert_all_independent({"first": kept["3 0"], "second": again["3 0"]}, bins=2)


def test_what_is_drawn_is_the_same_in_a_year() -> None:
    """Replays depend on these exact numbers, and on the purpose that each is used for."""
    config = AugmentConfig(
        crop_padding=4,
        horizontal_flip=0.5,
        policy="randaugment",
        brightness=0.4,
        contrast=0.3,
        saturation=0.2,
        hue=0.1,
        erasing=0.8,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
    )
    drawn = draw_augmentation(config, 3, 4, 6, 4, (12, 9), CPU)
    assert drawn.crops.top.tolist() == [2, 1, 3, 6, 5, 4]
    assert drawn.crops.left.tolist() == [6, 4, 7, 8, 0, 5]
    assert drawn.crops.flip.tolist() == [False, True, False, False, True, False]
    first, second = drawn.policy
    assert first.operation.tolist() == [6, 9, 4, 4, 2, 2]
    assert first.strength.tolist() == pytest.approx([0.27, 7, -9, -9, -1, 1])
    assert second.operation.tolist() == [7, 8, 9, 0, 13, 8]
    assert second.strength.tolist() == pytest.approx([-0.27, -0.27, 7, -0.09, 0, -0.27])
    assert drawn.jitter is not None and drawn.erasing is not None and drawn.mix is not None
    for name, expected in {
        "brightness": [0.3592, -0.3398, 0.3283, 0.3263, -0.3571, -0.2078],
        "contrast": [0.0706, 0.0182, -0.2308, 0.2912, 0.2905, -0.1012],
        "saturation": [0.0671, -0.12, 0.0362, 0.0804, -0.0481, 0.1098],
        "hue": [0.0815, 0.019, 0.0267, -0.0004, -0.0283, 0.09],
    }.items():
        assert getattr(drawn.jitter, name).tolist() == pytest.approx(expected, abs=1e-4)
    boxes = [[2, 9, 3, 7], [5, 9, 2, 4], [7, 9, 5, 8], [1, 10, 0, 4], [3, 8, 5, 9], [4, 11, 0, 4]]
    assert drawn.erasing.box.tolist() == boxes
    assert drawn.mix.partner.tolist()[:4] == [3, 0, 1, 2]
    assert drawn.mix.weight.tolist() == pytest.approx(
        [0.5556, 0.3987, 0.8519, 0.8148, 0.6429, 0.7821], abs=1e-4
    )
    cut = [[4, 12, 3, 9], [0, 0, 0, 0], [0, 4, 3, 7], [7, 12, 0, 4]]
    assert drawn.mix.box.tolist()[:4] == cut
    trivial = draw_augmentation(AugmentConfig(policy="trivialaugment"), 3, 4, 6, 4, (12, 9), CPU)
    (layer,) = trivial.policy
    assert layer.operation.tolist() == [6, 9, 4, 4, 2, 2]
    assert layer.strength.tolist() == pytest.approx([0.363, 2, -67.5, -63, 0, 18])
    windows = [[0.2726, 0.9571, 0.9413, 0.2212], [0.8371, 1.12, 0.0918, 0.1935]]
    assert draw_windows(0.1, 3, 4, 2) == pytest.approx(np.array(windows), abs=1e-4)
