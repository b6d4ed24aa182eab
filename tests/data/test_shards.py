"""WebDataset shards: images in tar archives, with their classes beside them."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from conftest import ListeningProgress
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.formats.write_image_tree import write_image_tree
from neuscale.data.prepare import prepare
from neuscale.errors import DataError, UsageError

from .trees import as_folder, as_shards, as_tar, picture, ready, split_files


def sample(key: str, label: str, seed: int = 0) -> dict[str, bytes]:
    return {f"{key}.png": picture(seed), f"{key}.cls": label.encode()}


def shard(path: Path, *samples: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    return as_tar({name: data for each in samples for name, data in each.items()}, path, "w:")


def test_numbers_have_the_names_of_the_list_beside_the_shards(tmp_path: Path) -> None:
    for split in ("train", "test"):
        shard(tmp_path / "s" / f"pets-{split}-0", *(sample(f"{i}", f"{i % 2 * 10}\n", i) for i in range(4)))
    with pytest.raises(DataError, match="no image is held out"):
        ready(tmp_path, tmp_path / "s")  # the first word of a shard's name is not a split here
    for split in ("train", "test"):
        (tmp_path / "s" / split).mkdir()
        (tmp_path / "s" / f"pets-{split}-0.tar").rename(tmp_path / "s" / split / "0.tar")
    plain = ready(tmp_path, tmp_path / "s", "plain")
    assert plain.meta.classes == ["0", "10"] and plain.meta.source["held_out"] == "test"
    (tmp_path / "s" / "classnames.txt").write_text("".join(f"kind {i}\n" for i in range(11)))
    named = ready(tmp_path, tmp_path / "s", "named")
    assert named.meta.classes == ["kind 0", "kind 10"]
    assert named.class_counts("val") == [2, 2]
    (tmp_path / "s" / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match="10 is none of the 2 classes in its list"):
        ready(tmp_path, tmp_path / "s", "again")


def test_a_single_shard_with_fields(tmp_path: Path, listening: ListeningProgress) -> None:
    members = {}
    for i in range(10):
        members[f"a/{i:04}.PNG"] = picture(i)
        members[f"a/{i:04}.mask.png"] = picture(100 + i)
        members[f"a/{i:04}.json"] = json.dumps({"label": i % 2, "breed": ["x", "y", "z"][i % 3]}).encode()
        members[f"a/{i:04}.txt"] = b"a caption"
    path = as_tar(members, tmp_path / "photos")
    assert ready(tmp_path, path, val_share=0.2).meta.classes == ["0", "1"]
    data = ready(tmp_path, path, "breeds", val_share=0.3, label_column="breed")
    assert data.meta.classes == ["x", "y", "z"] and data.class_counts("train") == [3, 2, 2]
    with pytest.raises(UsageError, match="which field is the class, is not clear; there are 'breed', 'lab"):
        ready(tmp_path, path, "x", val_share=0.2, label_column="kind")


def test_a_shard_without_a_split_is_not_used_and_said(tmp_path: Path, listening: ListeningProgress) -> None:
    folder = as_shards(split_files(["cat", "dog"]), tmp_path / "shards")
    shard(folder / "extra-0000", sample("0", "cat"))
    data = prepare("image_folder", root=tmp_path, source=folder, progress=listening)
    assert data.meta.counts == {"train": 6, "val": 4}
    assert "not used: 'extra-0000.tar', whose name has no split" in listening.warnings


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"2.png": picture(2)}, "2.png: no .cls and no .json has its class"),
        ({"0.jpg": picture(2)}, "0: there are two images of this key"),
        ({**sample("2", "cat\ndog")}, "2.cls: it does not hold one class"),
        ({**sample("2", " ")}, "2.cls: it does not hold one class"),
        ({"2.png": picture(2), "2.cls": b"\xff"}, "2.cls: not readable"),
        ({"2.png": picture(2), "2.json": b"[1]"}, "2.json: not an object with fields"),
        ({"2.png": picture(2), "2.json": b"{"}, "2.json: not readable"),
        ({"2.png": picture(2), "2.json": b'{"label": [1, 2]}'}, "2.json: 'label' is no text and no number"),
        ({"2.png": b"no image", "2.cls": b"cat"}, "2.png: not an image"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    whole = [sample("0", "cat", 0), sample("1", "dog", 1), sample("a", "cat", 2), sample("b", "dog", 3)]
    path = shard(tmp_path / "s" / "x", *whole, members)
    with pytest.raises(DataError, match=words):
        ready(tmp_path, path, val_share=0.5)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    folder = as_shards(split_files(["cat", "dog"]), tmp_path / "shards")
    path = folder / "train-0001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"train-0001\.tar: (not a whole tar archive|damaged)"):
        ready(tmp_path, folder)


def test_a_tree_of_files_is_written_of_shards_whose_keys_are_alike(tmp_path: Path) -> None:
    files = split_files(["cat", "dog"])
    folder = tmp_path / "s"
    for number, name in enumerate(files):
        split, class_name, _ = name.split("/")
        shard(folder / f"{split}-{number:04}", {"0.png": files[name], "0.cls": class_name.encode()})
    tree = write_image_tree("image_folder", root=tmp_path, source=folder)
    assert sorted(path.read_bytes() for path in tree.rglob("*.png")) == sorted(files.values())
    with pytest.raises(UsageError, match="its images are no files of their own"):
        list_images("image_folder", root=tmp_path, source=folder)


def test_a_tar_of_class_folders_with_notes_beside_the_images_is_no_shard(tmp_path: Path) -> None:
    files = split_files(["cat", "dog"]) | {"train/about.json": b"{}"}
    found = ready(tmp_path, as_tar(files, tmp_path / "t"), "t")
    tree = ready(tmp_path, as_folder(files, tmp_path / "tree"), "tree")
    assert found.meta.fingerprint == tree.meta.fingerprint
