"""A prepared data set is used only for the source and the options that it was made from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ListeningProgress
from neuscale.data.catalog import CATALOG
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.formats.write_image_tree import write_image_tree
from neuscale.data.prepare import prepare
from neuscale.data.source_record import Request
from neuscale.errors import DataError
from neuscale.progress import Silent

from .trees import as_folder, as_tar, picture, ready, set_time, split_files


def changed_folder(folder: Path, how: str) -> None:
    """Change the files that a data set was made from."""
    image = folder / "train" / "cat" / "0.png"
    if how == "a file more":
        (folder / "train" / "cat" / "9.png").write_bytes(picture(9))
    elif how == "a file less":
        image.unlink()
    elif how == "another size":
        image.write_bytes(picture(1, size=(9, 9)))
    elif how == "the same size":
        content = image.read_bytes()
        image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        set_time(image, 2_000_000_000)
    elif how == "a class more":
        as_folder(split_files(["wolf"]), folder)


MAKERS: dict[str, Callable[..., Any]] = {
    "packed": lambda root, source: prepare("image_folder", root=root, source=source, save_as="x", size=8),
    "files": lambda root, source: list_images("image_folder", root=root, source=source, save_as="x", size=8),
    "folder": lambda root, source: write_image_tree("image_folder", root=root, source=source, save_as="x"),
}


@pytest.mark.parametrize("layout", MAKERS)
@pytest.mark.parametrize(
    "how", ["a file more", "a file less", "another size", "the same size", "a class more"]
)
def test_a_folder_that_has_changed_is_not_taken_for_what_it_was(
    tmp_path: Path, layout: str, how: str
) -> None:
    folder = as_folder(split_files(["cat", "dog"]), tmp_path / "photos")
    make = MAKERS[layout]
    make(tmp_path / "data", folder)
    make(tmp_path / "data", folder)  # nothing has changed
    changed_folder(folder, how)
    with pytest.raises(DataError, match="prepared already, but from other files: ") as caught:
        make(tmp_path / "data", folder)
    words = {
        "a file more": "1 file is new (train/cat/9.png)",
        "a file less": "1 file is gone (train/cat/0.png)",
        "another size": "1 file is of another size (train/cat/0.png)",
        "the same size": "1 file is written anew since (train/cat/0.png)",
        "a class more": "5 files are new (train/wolf/0.png, train/wolf/1.png, train/wolf/2.png, …)",
    }[how]
    assert words in caught.value.problem and "Use `force`" in caught.value.fix


@pytest.mark.parametrize("layout", MAKERS)
def test_another_folder_of_the_same_name_is_another_source(tmp_path: Path, layout: str) -> None:
    one = as_folder(split_files(["cat", "dog"]), tmp_path / "a" / "photos")
    two = as_folder(split_files(["bear", "lion"]), tmp_path / "b" / "photos")
    MAKERS[layout](tmp_path / "data", one)
    with pytest.raises(DataError, match=f"already.*{one}|{one} already"):
        MAKERS[layout](tmp_path / "data", two)


def test_a_folder_that_was_moved_is_the_same_source(tmp_path: Path, listening: ListeningProgress) -> None:
    folder = as_folder(split_files(["cat", "dog"]), tmp_path / "photos")
    made = ready(tmp_path / "data", folder)
    moved = folder.rename(tmp_path / "elsewhere")
    again = prepare("image_folder", root=tmp_path / "data", source=moved, save_as="pets", progress=listening)
    assert again.meta == made.meta
    assert listening.messages == [
        f"pets was prepared on {made.meta.source['prepared']}, from {folder}; nothing was read anew"
    ]


def test_an_archive_of_the_same_size_and_other_content_is_another_source(tmp_path: Path) -> None:
    files = split_files(["cat", "dog"])
    path = as_tar(files, tmp_path / "photos", "w:")
    made = ready(tmp_path / "data", path)
    content = path.read_bytes()
    set_time(path, 2_000_000_000)
    assert ready(tmp_path / "data", path).meta == made.meta, "only written anew: its checksum says so"
    path.write_bytes(content.replace(b"train/cat/0.png", b"train/cat/7.png"))
    with pytest.raises(DataError, match="from an archive of the same size and other content"):
        ready(tmp_path / "data", path)


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        ({"size": 8}, {"size": 8, "fit": "pad"}, "with `fit` crop"),
        ({"size": 8, "fit": "pad"}, {"size": 8, "fit": "crop"}, "with `fit` pad"),
        ({"size": 8}, {"size": 6}, "with images of 8×8 pixels"),
        ({}, {"nested": True}, "without `nested`"),
    ],
)
def test_a_data_set_made_with_other_options_is_another_one(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any], words: str
) -> None:
    folder = as_folder(split_files(["cat", "dog"]), tmp_path / "photos")
    ready(tmp_path / "data", folder, **first)
    ready(tmp_path / "data", folder)  # no options: the existing data set is used
    with pytest.raises(DataError, match=f"prepared already, but {words}"):
        ready(tmp_path / "data", folder, **then)


def test_published_files_in_a_folder_are_known_again(tmp_path: Path) -> None:
    """Published files, like Fashion-MNIST's four, have no listing; their names and sizes are compared."""
    (tmp_path / "a.gz").write_bytes(b"12345")
    recorded = {"catalog": "fashion_mnist", "kind": "folder", "files": [{"name": "a.gz", "bytes": 5}]}
    request = Request(CATALOG["fashion_mnist"], tmp_path)
    request.check(tmp_path, recorded, Silent())
    (tmp_path / "a.gz").write_bytes(b"1234")
    with pytest.raises(DataError, match="prepared already, but from"):
        request.check(tmp_path, recorded, Silent())


def test_a_record_of_before_is_not_taken_for_these_files(tmp_path: Path) -> None:
    recorded = {"catalog": "image_folder", "kind": "folder", "given": "photos", "files": []}
    with pytest.raises(DataError, match="from photos, by a version that did not record its files"):
        Request(CATALOG["image_folder"], tmp_path).check(tmp_path, recorded, Silent())
