"""Assignment of files to images, classes and splits where a layout is ambiguous."""

import dataclasses
import gzip
import hashlib
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from conftest import ArchiveBuilder, ListeningProgress, TreeBuilder
from neuscale.data import open_source
from neuscale.data import prepare as prepare_module
from neuscale.data.catalog import CATALOG
from neuscale.data.datasets import is_prepared, open_prepared, prepared_names, remedy
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.formats.write_image_tree import write_image_tree
from neuscale.data.open_source import check_arguments, packed_name
from neuscale.data.prepare import prepare
from neuscale.data.sources import idx
from neuscale.data.sources.idx import IdxSource
from neuscale.data.sources.open_images import open_images
from neuscale.data.sources.options import SourceOptions
from neuscale.data.sources.source import Block
from neuscale.errors import UsageError
from neuscale.progress import Silent


def test_of_several_held_out_folders_val_is_taken_and_test_last(tmp_path: Path) -> None:
    """`test` comes last, because test images must not be used while a model is chosen."""
    for number, name in enumerate(("train", "test", "valid", "validation", "val")):
        for image in range(number + 1):
            (tmp_path / name / "cat").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name / "cat" / f"{image}.png")
    for name, count in (("val", 5), ("validation", 4), ("valid", 3), ("test", 2)):
        source = open_images(tmp_path)
        test = {} if name == "test" else {"test": 2}
        assert (source.held_out, dict(source.counts)) == (name, {"train": 1, "val": count, **test})
        unused = {"val": 2, "validation": 1}.get(name, 0)
        assert len([warning for warning in source.warnings if "not used: the" in warning]) == unused
        for path in sorted((tmp_path / name).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (tmp_path / name).rmdir()


def test_a_class_without_held_out_images_leaves_the_others_their_labels(
    build_image_tree: TreeBuilder, tmp_path: Path
) -> None:
    tree = build_image_tree(tmp_path / "tree", classes=("owl", "cat", "dog"), train=2, val=3)
    for path in (tree / "val" / "cat").iterdir():
        path.unlink()
    (tree / "val" / "cat").rmdir()
    source = open_images(tree)
    assert list(source.classes) == ["cat", "dog", "owl"] == ImageFolder(str(tree / "train")).classes
    assert [sample.label for sample in source.samples("train")] == [0, 0, 1, 1, 2, 2]
    assert [sample.label for sample in source.samples("val")] == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("block", [1, 4, 5, 9, 2048])
def test_idx_files_larger_than_a_block_are_read_to_their_end(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST has 60,000 images, which are read in blocks of 2,048."""
    monkeypatch.setattr(idx, "_BLOCK", block)
    random = np.random.default_rng(0)
    arrays = {
        "train-images-idx3": random.integers(0, 256, (9, 5, 6), dtype=np.uint8),
        "train-labels-idx1": random.permutation(9).astype(np.uint8),
        "t10k-images-idx3": random.integers(0, 256, (4, 5, 6), dtype=np.uint8),
        "t10k-labels-idx1": np.array([7, 2, 9, 0], dtype=np.uint8),
    }
    files = {}
    for name, array in arrays.items():
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        files[f"{name}-ubyte.gz"] = tmp_path / name
        (tmp_path / name).write_bytes(gzip.compress(header + array.tobytes()))
    source = IdxSource(files, CATALOG["fashion_mnist"].classes or ())
    assert source.counts == {"train": 9, "val": 4} and source.image_shape == (1, 5, 6)
    for split, prefix in (("train", "train"), ("val", "t10k")):
        blocks = list(source.blocks(split))
        assert max(len(part.labels) for part in blocks) <= block
        images = np.concatenate([part.images for part in blocks])
        assert np.array_equal(images[:, 0], arrays[f"{prefix}-images-idx3"])
        labels = np.concatenate([part.labels for part in blocks])
        assert labels.tolist() == arrays[f"{prefix}-labels-idx1"].tolist()
        places = np.concatenate([part.places for part in blocks])
        assert places.tolist() == list(range(len(labels)))


class _Arrays:
    """Source of arrays with twelve classes that are not in alphabetical order."""

    held_out = "test"
    classes = tuple(f"{'zyxwvutsrqpo'[label]}{label}" for label in range(12))
    image_shape = (1, 3, 2)
    counts = {"train": 24, "val": 12}  # noqa: RUF012 - never changed

    def blocks(self, split: str) -> Iterator[Block]:
        places = np.arange(self.counts[split])
        images = np.broadcast_to(places.astype(np.uint8)[:, None, None, None], (len(places), 1, 3, 2))
        yield Block(places, images, places % 12)


def test_a_tree_of_twelve_classes_is_read_in_the_order_of_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: ListeningProgress
) -> None:
    monkeypatch.setattr("neuscale.data.formats.write_image_tree.open_source", lambda *_: (_Arrays(), {}))
    folder = write_image_tree("fashion_mnist", root=tmp_path, progress=listening)
    assert [(task.title, task.done, task.total, task.unit) for task in listening.tasks] == [
        ("writing train", 24, 24, "img"),
        ("writing val", 12, 12, "img"),
    ]
    read = ImageFolder(str(folder / "train"))
    assert read.classes == [f"{label:02}-{name}" for label, name in enumerate(_Arrays.classes)]
    found = {(int(np.asarray(image)[0, 0, 0]), label) for image, label in read}
    assert found == {(place, place % 12) for place in range(24)}
    sizes = {image.size for image, _ in read}
    assert sizes == {(2, 3)}


@pytest.mark.parametrize(
    ("source", "save_as", "name"),
    [
        ("My Photos", None, "my_photos"),
        ("Cats & Dogs.tar.gz", None, "cats_dogs"),
        ("set-2.ZIP", None, "set-2"),
        ("a.b.tgz", None, "a_b"),
        ("x.tar", None, "x"),
        ("ÄÖ", None, "images"),
        ("y" * 70, None, "y" * 64),
        ("x.tar", "mine", "mine"),
    ],
)
def test_a_data_set_is_named_after_its_folder_or_archive(source: str, save_as: str | None, name: str) -> None:
    assert packed_name(CATALOG["image_folder"], Path(source), save_as) == name


def test_published_sets_keep_their_names_and_sizes_end_at_1024(tmp_path: Path) -> None:
    assert packed_name(CATALOG["cifar10"], tmp_path, None) == "cifar10"
    for size in (1, 1024):
        check_arguments(CATALOG["image_folder"], tmp_path, SourceOptions(size=size))
    for size in (0, -3, 1025):
        with pytest.raises(UsageError, match="not possible"):
            SourceOptions(size=size)


def test_packed_and_listed_sets_are_found_by_name_and_packed_ones_first(
    build_image_tree: TreeBuilder, tmp_path: Path
) -> None:
    tree = build_image_tree(tmp_path / "tree")
    prepare("image_folder", root=tmp_path, source=tree, save_as="b-both")
    for name in ("b-both", "a-files"):
        list_images("image_folder", root=tmp_path, source=tree, save_as=name)
    prepare("image_folder", root=tmp_path, source=tree, save_as="c-packed")
    (tmp_path / "packed" / ".hidden").mkdir()
    (tmp_path / "packed" / "a-file-and-no-folder").write_text("")
    assert prepared_names(tmp_path) == ["a-files", "b-both", "c-packed"]
    for name, kind, command in (
        ("a-files", ListedDataset, "--layout files"),
        ("b-both", PackedDataset, "--source PATH"),
        ("c-packed", PackedDataset, "--source PATH"),
    ):
        assert is_prepared(name, tmp_path)
        data = open_prepared(name, tmp_path)
        assert type(data) is kind and data.meta.name == name
        assert f"--save-as {name} --force" in remedy(data) and command in remedy(data)
    assert not is_prepared("d-nothing", tmp_path)


def test_the_record_is_the_same_twice_with_a_date_given(
    build_image_tree: TreeBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = build_image_tree(tmp_path / "pets", held_out="test", size=(9, 7))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, again = (prepare("image_folder", root=tmp_path / name, source=tree) for name in "ab")
    record = (first.folder / "meta.json").read_text()
    assert record == (again.folder / "meta.json").read_text()
    assert json.loads(record)["source"]["prepared"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_the_record_says_where_the_images_are_from(
    container: str,
    build_image_tree: TreeBuilder,
    build_archive: ArchiveBuilder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)  # set while a container image is built
    tree = build_image_tree(tmp_path / "pets", held_out="test", size=(9, 7))
    source = tree if container == "folder" else build_archive(tree, tmp_path / "pets.zip")
    data = prepare("image_folder", root=tmp_path / "data", source=source, size=5)
    content = source.read_bytes() if source.is_file() else b""
    identity = {
        "name": "pets.zip",
        "bytes": len(content),
        "md5": hashlib.md5(content).hexdigest(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    record = json.loads((data.folder / "meta.json").read_text())
    there = record["source"]
    assert there.pop("place") == str(source)
    assert abs(datetime.fromisoformat(there.pop("prepared")) - datetime.now(UTC)) < timedelta(minutes=5)
    if container == "folder":
        files = [path for path in sorted(tree.rglob("*")) if path.is_file()]
        listing = there.pop("listing")
        assert (listing["files"], listing["bytes"]) == (len(files), sum(p.stat().st_size for p in files))
    else:
        assert there.pop("seen") == [len(content), source.stat().st_mtime_ns]
    assert there == {
        "catalog": "image_folder",
        "kind": "folder" if container == "folder" else "archive",
        "given": source.name,
        "held_out": "test",
        "size": 5,
        "official": False,
        "files": [] if container == "folder" else [identity],
    }
    assert (record["title"], record["licence"]) == ("pets", "that of your images")


def test_an_archive_with_the_published_checksum_is_called_official(
    build_tiny_imagenet: TreeBuilder,
    build_archive: ArchiveBuilder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = build_archive(build_tiny_imagenet(tmp_path / "tree"), tmp_path / "my-copy.zip")
    entry = CATALOG["tiny_imagenet"]
    published = dataclasses.replace(entry.files[0], md5=hashlib.md5(path.read_bytes()).hexdigest())
    for files, official in ((entry.files, False), ((published,), True)):
        known = dataclasses.replace(entry, files=files)
        _, record = open_source.open_source(known, path, SourceOptions(), tmp_path, Silent())
        assert record["official"] is official
    monkeypatch.setattr(prepare_module, "catalog_entry", lambda _: known)
    data = prepare("tiny_imagenet", root=tmp_path / "data", source=path)
    assert data.meta.source["official"] is True and data.meta.title == "Tiny ImageNet"


def test_of_many_bad_images_ten_are_named_and_the_rest_is_counted(
    build_image_tree: TreeBuilder, tmp_path: Path, listening: ListeningProgress
) -> None:
    tree = build_image_tree(tmp_path / "pets", train=9, val=4)
    bad = [tree / "train" / name / f"{number:04}.png" for name in ("cat", "owl") for number in range(6)]
    bad.append(tree / "val" / "dog" / "0002.png")
    for path in bad:
        path.write_bytes(b"no image")
    data = prepare("image_folder", root=tmp_path, source=tree, skip_bad=True, progress=listening)
    assert data.meta.counts == {"train": 27 - 12, "val": 12 - 1}
    assert (data.class_counts("train"), data.class_counts("val")) == ([3, 9, 3], [4, 3, 4])
    left_out = data.meta.source["left_out"]
    for path, reason in zip(bad, left_out, strict=True):
        assert path.relative_to(tree).as_posix() in reason
    assert len(listening.warnings) == 11
    assert listening.warnings[:10] == [f"left out: {reason}" for reason in left_out[:10]]
    assert listening.warnings[10] == "and 3 more left out: all are in meta.json"
    listed = list_images("image_folder", root=tmp_path, source=tree, skip_bad=True)
    assert listed.meta.counts == data.meta.counts
    assert listed.meta.source["left_out"] == left_out
    assert (listed.meta.mean, listed.meta.std) == (data.meta.mean, data.meta.std)
