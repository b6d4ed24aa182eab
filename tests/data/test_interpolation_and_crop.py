"""Interpolation and centre crop of images that are resized for a model."""

import math
from pathlib import Path

import pytest
import torch

from conftest import TreeBuilder
from neuscale.config.schema import AugmentConfig, DataConfig
from neuscale.data.augment.crops import resize, side_before_crop
from neuscale.data.datasets import Dataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.loaders.choose import Choice, create_loader
from neuscale.data.loaders.loader import Loader
from neuscale.data.prepare import prepare
from neuscale.distributed.rank import Rank

CPU = torch.device("cpu")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("shape", "size", "crop"), [((20, 12), 8, 0.875), ((7, 30), 13, 0.8), ((5, 6), 16, 0.7)]
)
def test_the_middle_is_kept_of_an_image_made_larger(
    interpolation: str, shape: tuple[int, int], size: int, crop: float
) -> None:
    """Images are resized to size / crop and centre-cropped, as torchvision and timm evaluate."""
    from torchvision.transforms.v2 import functional as transforms

    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    side = math.floor(size / crop)
    mode = transforms.InterpolationMode(interpolation)
    larger = transforms.resize(images, [side, side], interpolation=mode, antialias=True)
    expected = transforms.center_crop(larger, [size, size])
    torch.testing.assert_close(resize(images, size, interpolation, crop), expected)
    there = torch.rand(1, 3, size, size)
    assert resize(there, size, interpolation, crop) is there


def test_the_side_before_the_crop_is_that_of_the_weights_makers() -> None:
    crops = (0.875, 224 / 232, 224 / 256, 0.9, 1.0)
    assert [side_before_crop(224, crop) for crop in crops] == [256, 232, 256, 248, 224]


@pytest.fixture(scope="module")
def tree(build_image_tree: TreeBuilder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_image_tree(tmp_path_factory.mktemp("crop") / "tree", train=6, val=4, size=(10, 10))


def loader_of(data: Dataset, kind: str, split: str, size: int, crop: float | None, how: str | None) -> Loader:
    section = DataConfig(name="x", image_size=size, crop=crop, interpolation=how, workers=0)
    return create_loader(Choice(kind, ""), section, data, split, CPU, Rank())


@pytest.mark.parametrize("how", [None, "bicubic"])
@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_packed_images_are_trained_and_evaluated_so(
    tree: Path, tmp_path: Path, kind: str, how: str | None
) -> None:
    data = prepare("image_folder", root=tmp_path, source=tree, save_as="x")
    for crop in (0.5, None):
        side, cut = (16, slice(4, 12)) if crop else (8, slice(0, 8))
        larger, shown = (loader_of(data, kind, "val", s, c, how) for s, c in ((side, None), (8, crop)))
        (expected,), (found,) = larger.evaluation(99), shown.evaluation(99)
        assert torch.equal(found.images, expected.images[..., cut, cut])
        larger, shown = (loader_of(data, kind, "train", s, c, how) for s, c in ((side, None), (8, crop)))
        words = AugmentConfig(crop_padding=1, horizontal_flip=0.5, erasing=0.5)
        ([expected],), ([found],) = (each.training(words, 0, 0, 0, 1, 6) for each in (larger, shown))
        assert torch.equal(found.images, expected.images[..., cut, cut])
    plain = loader_of(data, kind, "val", 8, None, None)
    other = loader_of(data, kind, "val", 8, None, how)
    assert torch.equal(*(next(iter(each.evaluation(99))).images for each in (plain, other))) == (how is None)
    same = loader_of(data, kind, "val", 10, 0.5, how)
    assert torch.equal(
        next(same.evaluation(99)).images,
        next(loader_of(data, kind, "val", 10, None, None).evaluation(99)).images,
    )


@pytest.mark.parametrize("window", [0.0, 0.5])
def test_the_middle_of_files_is_kept_unless_windows_are_drawn(
    tree: Path, tmp_path: Path, window: float
) -> None:
    data = list_images("image_folder", root=tmp_path, source=tree, size=8)
    plain, cropped, large = (
        loader_of(data, "files", "train", size, crop, None)
        for size, crop in ((8, None), (8, 0.5), (16, None))
    )
    assert cropped.stored_size == (16, 16)
    augment = AugmentConfig(resized_crop=window, erasing=0.5)
    batches = [
        next(iter(each.training(augment, 0, 0, 0, 1, 6)))[0].images for each in (plain, cropped, large)
    ]
    if window:
        assert torch.equal(batches[0], batches[1])
    else:
        assert torch.equal(batches[1], batches[2][..., 4:12, 4:12])
    cropped, large = (
        loader_of(data, "files", "val", size, crop, None) for size, crop in ((8, 0.5), (16, None))
    )
    (found,), (expected,) = cropped.evaluation(99), large.evaluation(99)
    assert torch.equal(found.images, expected.images[..., 4:12, 4:12])


def test_files_of_their_own_size_are_left_as_they_are(tree: Path, tmp_path: Path) -> None:
    data = list_images("image_folder", root=tmp_path, source=tree)
    section = DataConfig(name="x", crop=0.5, workers=0)
    loader = create_loader(Choice("files", ""), section, data, "val", CPU, Rank())
    plain = create_loader(Choice("files", ""), DataConfig(name="x", workers=0), data, "val", CPU, Rank())
    assert loader.stored_size == (10, 10)
    assert torch.equal(next(loader.evaluation(99)).images, next(plain.evaluation(99)).images)


@pytest.mark.parametrize("window", [0.0, 0.5])
def test_files_are_cut_at_the_models_size_whatever_that_of_the_list(
    tree: Path, tmp_path: Path, window: float
) -> None:
    seen = []
    for size in (6, 8):
        data = list_images("image_folder", root=tmp_path, source=tree, size=size, save_as=f"x{size}")
        loader = loader_of(data, "files", "train", 8, None, None)
        ([batch],) = loader.training(AugmentConfig(resized_crop=window), 0, 0, 0, 1, 6)
        pixels = batch.images * loader.std[:, None, None] + loader.mean[:, None, None]
        seen.append((pixels * 255).round())
    assert torch.equal(*seen)
