"""`--layout folder`: torchvision's ImageFolder reads exactly the images that are packed."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from conftest import ArchiveBuilder, TreeBuilder
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_tree import write_image_tree
from neuscale.data.prepare import prepare
from neuscale.data.sources.idx import IdxSource
from neuscale.errors import DataError, UsageError


def images_and_labels(folder: Path, split: str) -> list[tuple[int, bytes]]:
    read = ImageFolder(str(folder / split))
    return sorted((label, np.asarray(image).transpose(2, 0, 1).tobytes()) for image, label in read)


def packed_images(data: PackedDataset, split: str) -> list[tuple[int, bytes]]:
    pairs = zip(data.images(split), data.labels(split), strict=True)
    return sorted(
        (int(label), np.broadcast_to(image, (3, *image.shape[1:])).tobytes()) for image, label in pairs
    )


@pytest.mark.parametrize("container", ["folder", "zip", "tar.gz"])
def test_image_folder_reads_the_same_images_and_labels(
    container: str, build_image_tree: TreeBuilder, build_archive: ArchiveBuilder, tmp_path: Path
) -> None:
    source = build_image_tree(tmp_path / "pets", held_out="test")
    if container != "folder":
        source = build_archive(source, tmp_path / f"pets.{container}")
    folder = write_image_tree("image_folder", root=tmp_path / "data", source=source)
    assert folder == tmp_path / "data" / "folders" / "pets"
    data = prepare("image_folder", root=tmp_path / "data", source=source)
    for split in ("train", "val"):
        assert images_and_labels(folder, split) == packed_images(data, split)
    assert ImageFolder(str(folder / "train")).classes == data.meta.classes


def test_arrays_become_png_files_in_the_order_of_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST's classes are not in alphabetical order, and one has a '/' in its name."""
    random = np.random.default_rng(0)
    classes = ("T-shirt/top", "Trouser", "Bag")
    files = {}
    for part, count in (("train", 9), ("t10k", 6)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 3
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{part}-{kind}-ubyte.gz"
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            files[name] = tmp_path / name
            files[name].write_bytes(gzip.compress(header + array.tobytes()))
    source = IdxSource(files, classes)
    monkeypatch.setattr("neuscale.data.formats.write_image_tree.open_source", lambda *_: (source, {}))
    folder = write_image_tree("fashion_mnist", root=tmp_path / "data")
    read = ImageFolder(str(folder / "train"))
    assert read.classes == ["0-T-shirt-top", "1-Trouser", "2-Bag"]
    (block,) = source.blocks("train")
    expected = sorted(
        (int(label), np.broadcast_to(image, (3, 28, 28)).tobytes())
        for image, label in zip(block.images, block.labels, strict=True)
    )
    assert images_and_labels(folder, "train") == expected


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_image_leaves_no_tree(damage: str, build_image_tree: TreeBuilder, tmp_path: Path) -> None:
    source = build_image_tree(tmp_path / "pets", size=(32, 32))
    victim = source / "train" / "dog" / "0002.png"
    content = {"cut": victim.read_bytes()[:-400], "text": b"no image", "empty": b""}[damage]
    victim.write_bytes(content)
    with pytest.raises(DataError, match=r"dog/0002\.png"):
        write_image_tree("image_folder", root=tmp_path / "data", source=source)
    assert [path.name for path in (tmp_path / "data" / "folders").iterdir()] == [".pets.lock"]


def test_two_files_of_one_name_are_not_made_one(build_image_tree: TreeBuilder, tmp_path: Path) -> None:
    source = build_image_tree(tmp_path / "pets")
    inner = source / "train" / "cat" / "more"
    inner.mkdir()
    (inner / "0001.png").write_bytes((source / "train" / "cat" / "0002.png").read_bytes())
    folder = write_image_tree("image_folder", root=tmp_path / "data", source=source) / "train" / "cat"
    for name in ("0001.png", "more/0001.png"):
        copied = folder / f"train-cat-{name.replace('/', '-')}"
        assert copied.read_bytes() == (source / "train" / "cat" / name).read_bytes()
    assert (folder / "0002.png").is_file()
    (source / "train" / "cat" / "train-cat-more-0001.png").write_bytes((inner / "0001.png").read_bytes())
    with pytest.raises(DataError, match=r"cat/train-cat-more-0001\.png: two images"):
        write_image_tree("image_folder", root=tmp_path / "data", source=source, force=True)


def test_it_is_made_once_and_again_by_force(build_image_tree: TreeBuilder, tmp_path: Path) -> None:
    source = build_image_tree(tmp_path / "pets")
    folder = write_image_tree("image_folder", root=tmp_path / "data", source=source)
    (folder / "train" / "cat" / "0000.png").unlink()
    assert write_image_tree("image_folder", root=tmp_path / "data", source=source) == folder
    assert not (folder / "train" / "cat" / "0000.png").exists()
    write_image_tree("image_folder", root=tmp_path / "data", source=source, force=True)
    assert (folder / "train" / "cat" / "0000.png").exists()


def test_a_name_of_another_data_set_is_refused(tmp_path: Path, build_image_tree: TreeBuilder) -> None:
    with pytest.raises(UsageError, match="another data set"):
        write_image_tree(
            "image_folder", root=tmp_path, source=build_image_tree(tmp_path / "x"), save_as="cifar10"
        )


@pytest.mark.skipif(
    not os.environ.get("NEUSCALE_TEST_DATA"),
    reason="NEUSCALE_TEST_DATA names no folder with cifar10-jpeg.tar.gz and tiny-imagenet-40.zip",
)
def test_the_real_tiny_imagenet(tmp_path: Path) -> None:
    source = Path(os.environ["NEUSCALE_TEST_DATA"]) / "tiny-imagenet-40.zip"
    folder = write_image_tree("tiny_imagenet", root=tmp_path, source=source)
    data = prepare("tiny_imagenet", root=tmp_path, source=source)
    read = ImageFolder(str(folder / "val"))
    assert len(read) == 2000
    assert all(name.startswith("n0") for name in read.classes)
    assert images_and_labels(folder, "val") == packed_images(data, "val")
