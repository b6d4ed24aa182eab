"""`--skip-bad` leaves out the images that cannot be read, and lists them."""

import json
from pathlib import Path

import pytest

from conftest import ArchiveBuilder, ListeningProgress, TreeBuilder
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.errors import DataError

BAD = ("train/cat/0000.png", "train/owl/0002.png", "val/dog/0001.png")


@pytest.fixture
def tree(build_image_tree: TreeBuilder, tmp_path: Path) -> Path:
    folder = build_image_tree(tmp_path / "pets", size=(16, 16))
    for name, content in zip(BAD, (b"no image", b"", (folder / BAD[2]).read_bytes()[:-99]), strict=True):
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("container", ["folder", "zip", "tar.gz"])
def test_the_others_are_packed_and_these_are_listed(
    container: str, tree: Path, tmp_path: Path, build_archive: ArchiveBuilder, listening: ListeningProgress
) -> None:
    source = tree if container == "folder" else build_archive(tree, tmp_path / f"pets.{container}")
    with pytest.raises(DataError):
        prepare("image_folder", root=tmp_path / "data", source=source)
    data = prepare("image_folder", root=tmp_path / "data", source=source, skip_bad=True, progress=listening)
    assert data.meta.counts == {"train": 10, "val": 5}
    assert data.class_counts("train") == [3, 4, 3]
    assert data.class_counts("val") == [2, 1, 2]
    for name in BAD:
        (tree / name).unlink()
    clean = prepare("image_folder", root=tmp_path / "clean", source=tree)
    for split in ("train", "val"):
        assert (data.images(split) == clean.images(split)).all()
        assert (data.labels(split) == clean.labels(split)).all()
    recorded = json.loads((data.folder / "meta.json").read_text())["source"]["left_out"]
    assert len(recorded) == 3
    for name in BAD:
        assert sum(name in reason for reason in recorded) == 1
        assert sum(name in warning for warning in listening.warnings) == 1
    assert PackedDataset.open(data.folder).verify() == []


def test_nothing_bad_leaves_an_empty_list(build_image_tree: TreeBuilder, tmp_path: Path) -> None:
    source = build_image_tree(tmp_path / "pets")
    data = prepare("image_folder", root=tmp_path / "data", source=source, skip_bad=True)
    assert data.meta.source["left_out"] == []
    assert data.meta.counts == {"train": 12, "val": 6}


def test_a_class_of_which_nothing_is_left_is_said(tree: Path, tmp_path: Path) -> None:
    for path in (tree / "train" / "dog").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image of the class 'dog' can be read"):
        prepare("image_folder", root=tmp_path / "data", source=tree, skip_bad=True)
    assert not (tmp_path / "data" / "packed" / "pets").exists()
