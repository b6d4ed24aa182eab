"""Tiny ImageNet's layout: with wrong classes of validation images, training would look hopeless."""

from pathlib import Path

import numpy as np
import pytest

from conftest import ArchiveBuilder, TreeBuilder
from neuscale.data.prepare import prepare
from neuscale.data.sources.tiny_imagenet import open_tiny_imagenet
from neuscale.errors import DataError


@pytest.fixture
def tree(build_tiny_imagenet: TreeBuilder, tmp_path: Path) -> Path:
    return build_tiny_imagenet(tmp_path / "tiny-imagenet-200")


@pytest.mark.parametrize("container", ["folder", "folder above", "zip", "tar.gz"])
def test_classes_labels_and_pixels(
    container: str, tree: Path, tmp_path: Path, build_archive: ArchiveBuilder
) -> None:
    source = {"folder": tree, "folder above": tree.parent}.get(container)
    if source is None:
        source = build_archive(tree.parent, tmp_path.parent / f"{tmp_path.name}.{container}")
    data = prepare("tiny_imagenet", root=tmp_path / "root", source=source)
    assert data.meta.classes == ["crane (n01)", "Labrador retriever", "crane (n03)"]
    assert data.meta.counts == {"train": 12, "val": 6}
    assert data.meta.source["official"] is False and data.meta.source["held_out"] == "val"
    assert data.labels("train").tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for image, label in zip(data.images("val"), data.labels("val"), strict=True):
        assert abs(int(image[0, 8, 8]) - 80 * int(label)) < 8
    gray = data.images("train")[4]
    assert np.array_equal(gray[0], gray[1]) and np.array_equal(gray[0], gray[2])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("val_2.JPEG", "val_77.JPEG", r"line 3: the image 'val_77\.JPEG' is missing"),
        ("val_3.JPEG\tn01", "val_3.JPEG\tn55", "line 4: the class 'n55' is not in wnids.txt"),
        ("val_5.JPEG\tn03\t0\t0\t15\t15\n", "", r"val_5\.JPEG: this image has no line"),
        ("val_1.JPEG", "val_0.JPEG", r"line 2: the image 'val_0\.JPEG' is annotated twice"),
        ("val_4.JPEG\tn02", "val_4.JPEG n02", "line 5: .*val_4"),
    ],
)
def test_an_annotation_that_does_not_fit_is_named_with_its_line(
    old: str, new: str, says: str, tree: Path
) -> None:
    edit(tree / "val" / "val_annotations.txt", old, new)
    with pytest.raises(DataError, match=says) as caught:
        open_tiny_imagenet(tree)
    assert "val_annotations.txt" in caught.value.problem


def test_a_line_without_a_class_is_named(tree: Path) -> None:
    (tree / "val" / "val_annotations.txt").write_text("val_0.JPEG\n")
    with pytest.raises(DataError, match="line 1: no tab"):
        open_tiny_imagenet(tree)


def test_missing_parts_are_named(tree: Path) -> None:
    with pytest.raises(DataError, match=r"no wnids\.txt"):
        open_tiny_imagenet(tree / "train")
    edit(tree / "wnids.txt", "n02\n", "")
    with pytest.raises(DataError, match=r"train/n02: this class is not in wnids\.txt"):
        open_tiny_imagenet(tree)
    edit(tree / "wnids.txt", "n03\n", "n03\nn02\nn04\n")
    with pytest.raises(DataError, match="train/n04: there is no image of this class"):
        open_tiny_imagenet(tree)
    (tree / "val" / "val_annotations.txt").unlink()
    edit(tree / "wnids.txt", "n04\n", "")
    with pytest.raises(DataError, match=r"val/val_annotations\.txt: the file is missing"):
        open_tiny_imagenet(tree)


@pytest.mark.parametrize("content", ["", "n03\nn01\nn02\nn01\n"])
def test_classes_that_are_none_or_named_twice_are_refused(content: str, tree: Path) -> None:
    (tree / "wnids.txt").write_text(content)
    with pytest.raises(DataError, match=r"wnids\.txt: it is empty or names a class twice"):
        open_tiny_imagenet(tree)


def test_a_text_that_is_none_is_named(tree: Path) -> None:
    (tree / "words.txt").write_bytes(b"n01\t\xff\xfe\n")
    with pytest.raises(DataError, match=r"words\.txt: not a text"):
        open_tiny_imagenet(tree)
