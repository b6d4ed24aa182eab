"""Small versions of the published files give the right pixels under the right class names."""

import dataclasses
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from conftest import TreeBuilder
from neuscale.data import prepare as preparing
from neuscale.data.catalog import CATALOG, CatalogEntry
from neuscale.data.formats import write_image_list as listed_writer
from neuscale.data.formats import write_image_tree as image_tree
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.formats.write_image_tree import write_image_tree
from neuscale.data.prepare import prepare
from neuscale.data.sources.decode import SUFFIXES
from neuscale.errors import DataError, UsageError

Arrays = Mapping[str, tuple[NDArray[np.uint8], list[int]]]


def arrays(channels: int, side: int, train: list[int], val: list[int]) -> Arrays:
    """Return random images [N, C, H, W] with these labels, which may be in any order."""
    random = np.random.default_rng(0)
    return {
        split: (random.integers(0, 256, (len(labels), channels, side, side), dtype=np.uint8), labels)
        for split, labels in (("train", train), ("val", val))
    }


def write_fashion(folder: Path, content: Arrays) -> None:
    for split, prefix in (("train", "train"), ("val", "t10k")):
        images, labels = content[split]
        for kind, array in (("images-idx3", images[:, 0]), ("labels-idx1", np.array(labels))):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            data = gzip.compress(header + array.astype(np.uint8).tobytes())
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(data)


def write_tar(path: Path, batches: Mapping[str, object]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, batch in batches.items():
            data = pickle.dumps(batch, protocol=4)
            info = tarfile.TarInfo(f"batches/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_cifar10(folder: Path, content: Arrays) -> None:
    """Write an archive that starts with its last batch: batches are ordered by their numbers."""
    images, labels = content["train"]
    cut = np.array_split(np.arange(len(labels)), 5)
    batches = {
        f"data_batch_{number + 1}": {
            "data": images[part].reshape(len(part), -1),
            "labels": [labels[i] for i in part],
        }
        for number, part in reversed(list(enumerate(cut)))
    }
    images, labels = content["val"]
    test = {"data": images.reshape(len(labels), -1), "labels": labels}
    write_tar(folder / "cifar-10-python.tar.gz", {"test_batch": test, **batches})


def write_cifar100(folder: Path, content: Arrays) -> None:
    batches = {
        name: {
            "data": images.reshape(len(labels), -1),
            "coarse_labels": [label % 20 for label in labels],
            "fine_labels": labels,
        }
        for name, (images, labels) in (("test", content["val"]), ("train", content["train"]))
    }
    write_tar(folder / "cifar-100-python.tar.gz", batches)


WRITERS: dict[str, tuple[Callable[[Path, Arrays], None], Arrays]] = {
    "fashion_mnist": (write_fashion, arrays(1, 28, [3, 9, 0, 9, 1, 7, 7], [8, 2, 0])),
    "cifar10": (write_cifar10, arrays(3, 32, [5, 1, 1, 9, 0, 4, 4, 4, 7, 2, 8], [6, 3, 0, 3])),
    "cifar100": (write_cifar100, arrays(3, 32, [99, 0, 47, 47, 23], [53, 71, 0])),
}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], CatalogEntry]:
    """Function that writes a data set's files to raw/ and patches their checksums into the catalogue."""

    def publish(name: str) -> CatalogEntry:
        raw = tmp_path / "data" / "raw"
        raw.mkdir(parents=True)
        write, content = WRITERS[name]
        write(raw, content)
        entry = CATALOG[name]
        files = tuple(
            dataclasses.replace(
                file, md5=hashlib.md5((raw / file.name).read_bytes()).hexdigest(), content_md5=None
            )
            for file in entry.files
        )
        known = dataclasses.replace(entry, files=files, distribution_folder=None, distribution_package=None)
        for module in (preparing, image_tree, listed_writer):
            monkeypatch.setattr(module, "catalog_entry", lambda _: known)
        return known

    return publish


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("given", [False, True], ids=["fetched", "given"])
def test_pixels_labels_and_names_are_those_of_the_files(
    name: str, given: bool, published: Callable[[str], CatalogEntry], tmp_path: Path
) -> None:
    entry, content = published(name), WRITERS[name][1]
    raw = tmp_path / "data" / "raw"
    source = None
    if given:
        source = raw if name == "fashion_mnist" else raw / entry.files[0].name
    data = prepare(name, root=tmp_path / "data", source=source)
    for split, (images, labels) in content.items():
        assert np.array_equal(data.images(split), images)
        assert data.labels(split).tolist() == labels
    names = [data.meta.classes[label] for label in content["val"][1]]
    assert (
        names
        == {
            "fashion_mnist": ["Bag", "Pullover", "T-shirt/top"],
            "cifar10": ["frog", "cat", "airplane", "cat"],
            "cifar100": ["orange", "sea", "apple"],
        }[name]
    )
    values = content["train"][0] / 255
    assert data.meta.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert data.meta.std == pytest.approx(values.std((0, 2, 3)).tolist(), rel=1e-12)
    record = data.meta.source
    kind = "published" if not given else "folder" if name == "fashion_mnist" else "archive"
    assert (record["kind"], record["official"], record["held_out"]) == (kind, True, "test")
    assert record["given"] == ("raw" if name == "fashion_mnist" or not given else entry.files[0].name)
    assert [(file["name"], file["bytes"], file["md5"]) for file in record["files"]] == [
        (file.name, (raw / file.name).stat().st_size, file.md5) for file in entry.files
    ]
    assert (data.meta.title, data.meta.licence) == (entry.title, entry.licence)
    assert PackedDataset.open(data.folder).verify() == []


def test_tiny_imagenets_files_keep_their_folders_and_labels(
    build_tiny_imagenet: TreeBuilder, tmp_path: Path
) -> None:
    """Red encodes the class, in a tree for torchvision and in a list, which is sorted like packed arrays."""
    tree = build_tiny_imagenet(tmp_path / "tiny", train=3)
    folder = write_image_tree("tiny_imagenet", root=tmp_path, source=tree)
    for split, count in (("train", 9), ("val", 6)):
        read = ImageFolder(str(folder / split))
        assert (read.classes, len(read)) == (["n01", "n02", "n03"], count)
        # The first image of each class is grey, as some are in the original.
        reds = [(label, int(np.asarray(image)[8, 8, 0])) for image, label in read]
        colored = [pair for pair in reds if split == "val"] or [reds[i] for i in range(9) if i % 3]
        assert all(abs(red - 80 * label) < 8 for label, red in colored)
    data = list_images("tiny_imagenet", root=tmp_path, source=tree)
    assert data.meta.classes == ["crane (n01)", "Labrador retriever", "crane (n03)"]
    assert data.labels("val").tolist() == [0, 0, 1, 1, 2, 2]
    assert [file.name for file in data.files("val")] == [
        f"val/images/val_{number}.JPEG" for number in (1, 3, 0, 4, 2, 5)
    ]
    assert [int(data.image("val", i)[0, 8, 8]) // 40 for i in range(6)] == [0, 0, 2, 2, 4, 4]


def test_every_suffix_that_torchvision_reads_is_packed(tmp_path: Path) -> None:
    """All of torchvision's suffixes are known; an image with an unknown one would be left out silently."""
    assert set(IMG_EXTENSIONS) <= SUFFIXES
    for number, suffix in enumerate(sorted(SUFFIXES)):
        for split in ("train", "val"):
            written = suffix.upper() if split == "val" else suffix
            path = tmp_path / "tree" / split / "one" / f"{number:02}{written}"
            path.parent.mkdir(parents=True, exist_ok=True)
            color = 15 * number if suffix in (".pgm", ".pbm") else (15 * number, 0, 0)
            image = Image.new("L" if suffix in (".pgm", ".pbm") else "RGB", (8, 8), color)
            # Pillow names some formats otherwise; its own .pbm would have one bit per pixel.
            image.save(path, {".jfif": "JPEG", ".jpe": "JPEG", ".pbm": "PPM"}.get(suffix))
    data = prepare("image_folder", root=tmp_path, source=tmp_path / "tree")
    assert data.meta.counts == {"train": len(SUFFIXES), "val": len(SUFFIXES)}
    for split in ("train", "val"):
        assert data.images(split).shape == (len(SUFFIXES), 3, 8, 8)
        reds = data.images(split)[:, 0, 4, 4].astype(int)
        assert np.abs(reds - 15 * np.arange(len(SUFFIXES))).max() <= 3


def test_a_list_at_another_size_is_another_list(build_image_tree: TreeBuilder, tmp_path: Path) -> None:
    tree = build_image_tree(tmp_path / "pets", size=(12, 12))
    first = list_images("image_folder", root=tmp_path, source=tree, size=8)
    assert (first.meta.height, first.meta.source["size"]) == (8, 8)
    assert list_images("image_folder", root=tmp_path, source=tree).meta == first.meta
    with pytest.raises(DataError, match="already, but with images of 8×8 pixels"):
        list_images("image_folder", root=tmp_path, source=tree, size=6)
    again = list_images("image_folder", root=tmp_path, source=tree, size=6, force=True)
    assert (again.meta.height, again.image("val", 5).shape) == (6, (3, 6, 6))
    for source in (None, tree / "train" / "cat" / "0000.png"):
        with pytest.raises(UsageError, match="only images in a folder can be kept as files"):
            list_images("image_folder", root=tmp_path, source=source)
