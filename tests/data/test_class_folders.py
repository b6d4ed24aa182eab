"""Class folders are found where they are meant to be, and files that are not images are reported."""

from pathlib import Path

import pytest

from conftest import ListeningProgress
from neuscale.data.prepare import prepare
from neuscale.errors import DataError

from .trees import as_folder, as_zip, picture, ready, split_files


def test_classes_below_groups_are_refused_or_taken(tmp_path: Path) -> None:
    names = ["animal/cat", "animal/dog", "plant/oak"]
    folder = as_folder(split_files(names), tmp_path / "photos")
    with pytest.raises(
        DataError, match="folders below 'animal', 'plant': 'animal/cat', 'animal/dog', 'plant/oak'"
    ):
        ready(tmp_path, folder)
    assert ready(tmp_path, folder, "deep", nested=True).meta.classes == ["cat", "dog", "oak"]
    first = ready(tmp_path, folder, "first", nested=False)
    assert first.meta.classes == ["animal", "plant"] and first.class_counts("train") == [6, 3]


def test_groups_with_classes_of_the_same_name_keep_both(tmp_path: Path) -> None:
    folder = as_folder(split_files(["animal/other", "plant/other", "plant/oak"]), tmp_path / "photos")
    assert ready(tmp_path, folder, nested=True).meta.classes == ["animal/other", "oak", "plant/other"]


def test_a_wrapper_around_the_classes_is_refused_or_taken(tmp_path: Path) -> None:
    folder = as_folder(split_files(["images/cat", "images/dog"]), tmp_path / "photos")
    with pytest.raises(DataError, match="folders below 'images': 'images/cat', 'images/dog'"):
        ready(tmp_path, folder)
    assert ready(tmp_path, folder, nested=True).meta.classes == ["cat", "dog"]


def test_a_folder_of_the_same_name_in_each_class_is_part_of_it(tmp_path: Path) -> None:
    folder = as_folder(split_files(["cat/images", "dog/images"]), tmp_path / "photos")
    assert ready(tmp_path, folder).meta.classes == ["cat", "dog"]


def test_images_below_a_class_with_images_count_as_its_own_and_that_is_said(
    tmp_path: Path, listening: ListeningProgress
) -> None:
    folder = as_folder(split_files(["cat", "cat/persian", "dog"]), tmp_path / "photos")
    data = prepare("image_folder", root=tmp_path, source=folder, progress=listening)
    assert data.class_counts("train") == [6, 3]
    assert any("images in 'cat/persian' count as their class folder's" in text for text in listening.warnings)


@pytest.mark.parametrize(
    ("train", "val", "top"),
    [
        ("Train", "Val", ""),
        ("training", "validation", ""),
        ("TRAIN", "TEST", "archive/data/"),
        ("train", "dev", "one/two/three/"),
    ],
)
def test_splits_by_other_names_and_below_other_folders(
    tmp_path: Path, train: str, val: str, top: str
) -> None:
    files = {
        f"{top}{name.replace('train', train, 1).replace('val', val, 1)}": content
        for name, content in split_files(["cat", "dog"]).items()
    }
    data = ready(tmp_path, as_zip(files, tmp_path / "z"))
    assert (data.meta.classes, data.meta.counts) == (["cat", "dog"], {"train": 6, "val": 4})


def test_what_is_left_out_is_said(tmp_path: Path, listening: ListeningProgress) -> None:
    files = split_files(["cat", "dog"]) | {
        "train/cat/a.heic": b"\0\0\0\x18ftypheic",
        "train/cat/b.HEIC": b"\0\0\0\x18ftypheic",
        "train/dog/c.mov": b"x",
        "unlabeled/d.png": picture(0),
        "@eaDir/e.png": b"x",
        "train/cat/.git/f.png": b"x",
        "train/cat/Thumbs.db": b"x",
    }
    data = prepare("image_folder", root=tmp_path, source=as_folder(files, tmp_path / "t"), progress=listening)
    assert data.meta.counts == {"train": 6, "val": 4}
    assert listening.warnings == [
        "left out, being no images by their names: 2 .heic, 1 .mov",
        "not used: the 1 image in 'unlabeled', which is no split",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(50), "it is a HEIC, which is not read: convert it to JPEG or PNG"),
        (b"%PDF-1.7" + bytes(50), "it is a PDF"),
        (b"<html><body>404", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "whose file was not fetched"),
        (b"", "the file is empty"),
        (b"text", "not an image, or its beginning is damaged"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    files = split_files(["cat", "dog"]) | {"train/cat/x.jpg": content}
    with pytest.raises(DataError, match=words) as caught:
        ready(tmp_path, as_folder(files, tmp_path / "t"))
    assert "train/cat/x.jpg" in caught.value.problem and "`skip_bad`" in caught.value.fix


def test_all_bad_images_are_counted(tmp_path: Path) -> None:
    bad = {f"train/cat/bad{i}.jpg": b"x" for i in range(8)}
    folder = as_folder(split_files(["cat", "dog"], train=9) | bad, tmp_path / "t")
    with pytest.raises(DataError, match="8 images cannot be read") as caught:
        ready(tmp_path, folder)
    assert "bad0.jpg" in caught.value.problem and "and 3 more" in caught.value.problem
    assert "leave them out with `skip_bad`" in caught.value.fix
