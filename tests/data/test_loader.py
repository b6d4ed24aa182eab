"""Batches hold the right pixels for the right images, at any world size and after any resume."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.crops import CropFlip, Rows, crop_flip, draw_crop_flip, normalize, resize
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.loaders.loader import Batch
from neuscale.data.loaders.resident import ResidentLoader
from neuscale.data.prepare import prepare
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError

CPU = torch.device("cpu")
AUGMENT = AugmentConfig(crop_padding=2, horizontal_flip=0.5)
# All augmentations at once: the draws for an image must not depend on the rank that computes it.
EVERYTHING = [
    AUGMENT,
    AugmentConfig(
        crop_padding=1,
        horizontal_flip=0.5,
        policy="randaugment",
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        erasing=0.5,
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
    ),
    AugmentConfig(policy="trivialaugment", cutmix_alpha=1.0),
]


@pytest.fixture(scope="module")
def data(build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    folder = tmp_path_factory.mktemp("images")
    tree = build_image_tree(folder / "tree", train=20, val=7)
    return prepare("image_folder", root=folder / "data", source=tree, save_as="noise")


def all_batches(
    data: PackedDataset,
    processes: int,
    accumulation: int,
    first_step: int = 0,
    augment: AugmentConfig = AUGMENT,
) -> list[Batch]:
    """Return the global batches (of 12) of an epoch, reassembled from all ranks."""
    loaders = [ResidentLoader(data, "train", None, CPU, Rank(rank, processes)) for rank in range(processes)]
    epochs = [list(loader.training(augment, 3, 1, first_step, 5, 12, accumulation)) for loader in loaders]
    whole = []
    for shares in zip(*epochs, strict=True):
        parts = [batch for share in shares for batch in share]
        whole.append(
            Batch(
                torch.cat([p.images for p in parts]),
                torch.cat([p.labels for p in parts]),
                torch.cat([p.samples for p in parts]),
                parts[0].epoch,
                slice(parts[0].positions.start, parts[-1].positions.stop),
                None if parts[0].mix_weights is None else torch.cat([p.partner_labels for p in parts]),
                None if parts[0].mix_weights is None else torch.cat([p.mix_weights for p in parts]),
            )
        )
    return whole


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(ones, others, strict=True):
        for field in dataclasses.fields(Batch):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


@pytest.mark.parametrize("augment", EVERYTHING, ids=["crops", "everything", "trivial"])
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 3), (2, 1), (2, 3), (3, 2), (4, 1), (6, 2)])
def test_processes_and_accumulation_change_no_pixel(
    data: PackedDataset, processes: int, accumulation: int, augment: AugmentConfig
) -> None:
    alone = all_batches(data, 1, 1, augment=augment)
    assert_same(alone, all_batches(data, processes, accumulation, augment=augment))


@pytest.mark.parametrize("augment", EVERYTHING, ids=["crops", "everything", "trivial"])
@pytest.mark.parametrize("step", [1, 4])
def test_going_on_in_the_middle_of_an_epoch_changes_no_pixel(
    data: PackedDataset, step: int, augment: AugmentConfig
) -> None:
    whole = all_batches(data, 1, 1, augment=augment)
    assert_same(whole[step:], all_batches(data, 1, 1, first_step=step, augment=augment))


def test_mixed_images_come_with_both_labels(data: PackedDataset) -> None:
    """A blend of two known images is recovered from its labels and its weight."""
    loader = ResidentLoader(data, "train", None, CPU, Rank())
    [plain] = next(loader.training(AugmentConfig(), 3, 1, 0, 1, 12))
    [mixed] = next(loader.training(AugmentConfig(mixup_alpha=1.0), 3, 1, 0, 1, 12))
    assert mixed.mix_weights is not None
    assert mixed.partner_labels is not None
    for i in range(12):
        share = mixed.mix_weights[i]
        candidates = share * plain.images[i] + (1 - share) * plain.images
        partner = (candidates - mixed.images[i]).abs().amax((1, 2, 3)).argmin()
        assert torch.allclose(candidates[partner], mixed.images[i], atol=1e-5)
        assert mixed.partner_labels[i] == plain.labels[partner]
        assert mixed.labels[i] == plain.labels[i]


def test_a_batch_holds_the_images_that_it_names(data: PackedDataset) -> None:
    loader = ResidentLoader(data, "train", None, CPU, Rank())
    plain = AugmentConfig(crop_padding=0, horizontal_flip=0.0)
    [batch] = next(loader.training(plain, 0, 0, 0, 1, 10))
    samples = batch.samples.numpy()
    pixels = data.images("train")[samples].astype(np.float64) / 255
    mean, std = np.array(data.meta.mean)[:, None, None], np.array(data.meta.std)[:, None, None]
    np.testing.assert_allclose(batch.images.numpy(), (pixels - mean) / std, atol=1e-5)
    np.testing.assert_array_equal(batch.labels.numpy(), data.labels("train")[samples])


def test_the_normalised_training_images_have_mean_0_and_deviation_1(data: PackedDataset) -> None:
    loader = ResidentLoader(data, "train", None, CPU, Rank())
    images = torch.cat([b.images for b in loader.evaluation(16)]).double()
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("processes", [1, 2, 5, 30])
def test_evaluation_sees_every_image_once_and_unchanged(data: PackedDataset, processes: int) -> None:
    seen = []
    for rank in range(processes):
        loader = ResidentLoader(data, "val", None, CPU, Rank(rank, processes))
        for batch in loader.evaluation(4):
            seen += batch.samples.tolist()
            expected = normalize(
                torch.from_numpy(np.array(data.images("val")[batch.samples.numpy()])), loader.mean, loader.std
            )
            assert torch.equal(batch.images, expected)
    assert sorted(seen) == list(range(21))


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from([1, 3]),
    padding=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_crop_and_flip_equal_those_of_one_image_at_a_time(
    size: tuple[int, int], channels: int, padding: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (5, channels, *size), dtype=np.uint8)
    top, left = (random.integers(0, 2 * padding + 1, 5) for _ in range(2))
    flip = random.random(5) < 0.5
    height, width = size
    expected = []
    for image, row, column, mirrored in zip(images, top, left, flip, strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        cut = padded[:, row : row + height, column : column + width]
        expected.append(cut[:, :, ::-1] if mirrored else cut)
    crops = CropFlip(*(torch.from_numpy(x) for x in (top, left, flip)), padding)
    index = torch.from_numpy(random.permutation(5))
    rows = Rows(torch.from_numpy(images)[index.argsort()], index)
    np.testing.assert_array_equal(crop_flip(rows, crops).numpy(), np.stack(expected))


def test_crops_reach_every_place_and_half_the_images_are_mirrored() -> None:
    crops = draw_crop_flip(AUGMENT, 0, 0, 20_000, CPU)
    for offsets in (crops.top, crops.left):
        assert torch.bincount(offsets, minlength=5).div(20_000).sub(0.2).abs().max() < 0.02
    assert abs(crops.flip.float().mean() - 0.5) < 0.02
    assert not draw_crop_flip(AugmentConfig(crop_padding=2), 0, 0, 1000, CPU).flip.any()
    assert draw_crop_flip(AugmentConfig(crop_padding=2, horizontal_flip=1.0), 0, 0, 1000, CPU).flip.all()


def test_images_are_resized_to_what_the_model_sees(data: PackedDataset) -> None:
    loader = ResidentLoader(data, "val", 20, CPU, Rank())
    assert next(loader.evaluation(4)).images.shape == (4, 3, 20, 20)
    flat = torch.full((1, 3, 8, 8), 0.25)
    assert torch.allclose(resize(flat, 20), torch.full((1, 3, 20, 20), 0.25))
    assert resize(flat, 8) is flat


def test_images_that_are_not_square_need_a_size(
    build_image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    tree = build_image_tree(tmp_path / "tree", size=(8, 6))
    wide = prepare("image_folder", root=tmp_path / "data", source=tree, save_as="wide")
    with pytest.raises(UsageError, match=r"(?s)6×8.*data\.image_size"):
        ResidentLoader(wide, "train", None, CPU, Rank())
    assert next(ResidentLoader(wide, "val", 8, CPU, Rank()).evaluation(2)).images.shape[-2:] == (8, 8)
