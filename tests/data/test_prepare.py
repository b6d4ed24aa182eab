"""Preparing data twice, from another source, from real archives, and with invalid arguments."""

import os
from pathlib import Path

import numpy as np
import pytest

from conftest import ArchiveBuilder, ListeningProgress, TreeBuilder
from neuscale.data.catalog import CATALOG
from neuscale.data.datasets import prepared_names
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.errors import DataError, UsageError, UserError

CIFAR_CLASSES = CATALOG["cifar10"].classes or ()


def test_the_second_time_costs_nothing(
    tmp_path: Path, build_image_tree: TreeBuilder, listening: ListeningProgress
) -> None:
    tree = build_image_tree(tmp_path / "My Photos")
    first = prepare("image_folder", root=tmp_path, source=tree)
    assert first.folder == tmp_path / "packed" / "my_photos" and first.meta.title == "my_photos"
    again = prepare("image_folder", root=tmp_path, source=tree, progress=listening)
    assert again.meta == first.meta and listening.tasks == []
    assert prepared_names(tmp_path) == ["my_photos"]


def test_a_prepared_set_is_used_from_a_folder_that_cannot_be_written(
    tmp_path: Path, build_image_tree: TreeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only data works, as in a container image or a shared folder that an administrator filled."""
    tree = build_image_tree(tmp_path / "tree")
    prepare("image_folder", root=tmp_path, source=tree)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("neuscale.fs.FileLock", refuse)
    assert prepare("image_folder", root=tmp_path, source=tree).meta.name == "tree"


def test_another_source_or_size_is_not_taken_for_the_prepared_one(
    tmp_path: Path, build_image_tree: TreeBuilder, build_archive: ArchiveBuilder
) -> None:
    """Another source or size is an error, since silently training on the older data would be worse."""
    tree = build_image_tree(tmp_path / "tree")
    one = build_archive(tree, tmp_path / "one.zip")
    prepare("image_folder", root=tmp_path, source=one, save_as="mine")
    other = build_archive(build_image_tree(tmp_path / "other", seed=1, train=5), tmp_path / "two.zip")
    for options in ({"source": other}, {"source": tree}, {"source": one, "size": 4}):
        with pytest.raises(
            DataError, match=r"prepared already, but (from .*/one\.zip|with images of the size they have)"
        ) as caught:
            prepare("image_folder", root=tmp_path, save_as="mine", **options)
        assert "Use `force`" in caught.value.fix
    forced = prepare("image_folder", root=tmp_path, source=other, save_as="mine", force=True)
    assert forced.meta.counts["train"] == 15
    with pytest.raises(DataError, match="prepared already, but as image_folder"):
        prepare("cifar10", root=tmp_path, source=one, save_as="mine")


def test_a_damaged_set_is_made_anew(
    tmp_path: Path, build_image_tree: TreeBuilder, listening: ListeningProgress
) -> None:
    tree = build_image_tree(tmp_path / "tree")
    data = prepare("image_folder", root=tmp_path, source=tree)
    (data.folder / "val_images.npy").unlink()
    again = prepare("image_folder", root=tmp_path, source=tree, progress=listening)
    assert again.meta.fingerprint == data.meta.fingerprint and again.verify() == []
    assert "val_images.npy: it is missing" in listening.warnings[0]


def test_arguments_that_do_not_go_together(tmp_path: Path, build_image_tree: TreeBuilder) -> None:
    tree = build_image_tree(tmp_path / "tree")
    for name, options, says in (
        ("image_folder", {}, "needs images"),
        ("fashion_mnist", {"size": 32}, "comes as arrays of 28×28"),
        ("cifar10", {"size": 32}, "comes as arrays of 32×32"),
        ("image_folder", {"source": tree, "size": 0}, "not possible"),
        ("image_folder", {"source": tree, "save_as": "../x"}, "cannot be the name"),
        ("image_folder", {"source": tree, "save_as": "cifar10"}, "name of another data set"),
        ("imagefolder", {}, "Did you mean 'image_folder'"),
    ):
        with pytest.raises(UsageError, match=says):
            prepare(name, root=tmp_path, **options)
    assert prepared_names(tmp_path) == []


def test_cifar10_as_images_has_exactly_its_classes(tmp_path: Path, build_image_tree: TreeBuilder) -> None:
    tree = build_image_tree(tmp_path / "tree", classes=CIFAR_CLASSES, train=1, val=1, held_out="test")
    data = prepare("cifar10", root=tmp_path, source=tree)
    assert data.meta.classes == list(CIFAR_CLASSES) and data.meta.title == "CIFAR-10"
    assert data.meta.source["official"] is False
    less = build_image_tree(tmp_path / "less", classes=CIFAR_CLASSES[1:], train=1, val=1)
    with pytest.raises(DataError, match="the class 'airplane' is missing"):
        prepare("cifar10", root=tmp_path, source=less, force=True)
    more = build_image_tree(tmp_path / "more", classes=(*CIFAR_CLASSES, "zebra"), train=1, val=1)
    with pytest.raises(DataError, match="train/zebra: there is no such class, they are 'airplane'"):
        prepare("cifar10", root=tmp_path, source=more, force=True)
    assert PackedDataset.open(data.folder).verify() == []


def test_what_calls_itself_the_official_cifar10_must_be_it(tmp_path: Path) -> None:
    source = tmp_path / "cifar-10-python.tar.gz"
    source.write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(DataError, match="only the official one is safe to unpickle"):
        prepare("cifar10", root=tmp_path, source=source)


def test_fashion_mnist_from_a_folder_must_be_the_published_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: there is no such file"):
        prepare("fashion_mnist", root=tmp_path, source=tmp_path)
    for file in CATALOG["fashion_mnist"].files:
        (tmp_path / file.name).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: checksum differs"):
        prepare("fashion_mnist", root=tmp_path, source=tmp_path)


def test_a_root_that_is_a_file_is_one_message(tmp_path: Path, build_image_tree: TreeBuilder) -> None:
    tree = build_image_tree(tmp_path / "tree")
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match="a part of this path is a file"):
        prepare("image_folder", root=tmp_path / "root", source=tree)


real_data = pytest.mark.skipif(
    not os.environ.get("NEUSCALE_TEST_DATA"),
    reason="NEUSCALE_TEST_DATA names no folder with cifar10-jpeg.tar.gz and tiny-imagenet-40.zip",
)


@real_data
def test_the_real_cifar10(tmp_path: Path) -> None:
    source = Path(os.environ["NEUSCALE_TEST_DATA"]) / "cifar10-jpeg.tar.gz"
    data = prepare("cifar10", root=tmp_path, source=source)
    assert data.images("train").shape == (50_000, 3, 32, 32)
    assert np.bincount(data.labels("train")).tolist() == [5000] * 10
    assert np.bincount(data.labels("val")).tolist() == [1000] * 10
    # Statistics of the original images; JPEG copies differ in the third decimal.
    assert np.allclose(data.meta.mean, [0.4914, 0.4822, 0.4465], atol=2e-3)
    assert np.allclose(data.meta.std, [0.2470, 0.2435, 0.2616], atol=3e-3)


@real_data
def test_the_real_tiny_imagenet(tmp_path: Path) -> None:
    source = Path(os.environ["NEUSCALE_TEST_DATA"]) / "tiny-imagenet-40.zip"
    data = prepare("tiny_imagenet", root=tmp_path, source=source)
    assert data.images("train").shape == (20_000, 3, 64, 64)
    assert np.bincount(data.labels("val")).tolist() == [50] * 40
    assert data.meta.classes[:2] == ["goldfish", "bullfrog"] and data.verify() == []
    # Validation labels come from another file: with wrong ones the class means would not correlate.
    train = [data.images("train")[data.labels("train") == label][:200].mean((0, 2, 3)) for label in range(40)]
    val = [data.images("val")[data.labels("val") == label].mean((0, 2, 3)) for label in range(40)]
    assert np.corrcoef(np.ravel(train), np.ravel(val))[0, 1] > 0.9
