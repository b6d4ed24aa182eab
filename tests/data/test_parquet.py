"""Parquet files with embedded images, as on the Hugging Face hub, or as label tables of image files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import ListeningProgress
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.formats.write_image_tree import write_image_tree
from neuscale.data.prepare import prepare
from neuscale.errors import DataError, UsageError

from .trees import as_folder, as_parquet, picture, ready, split_files

pa: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


def test_numbers_have_the_names_and_the_order_of_the_features(tmp_path: Path) -> None:
    files = split_files(["oak", "cat"])
    data = ready(tmp_path, as_parquet(files, tmp_path / "p", names=["oak", "fox", "cat"]))
    assert data.meta.classes == ["oak", "cat"]  # no fox, which has no image
    assert data.class_counts("train") == [3, 3]
    tree = ready(tmp_path, as_folder(files, tmp_path / "tree"), "tree")
    order = np.argsort(1 - tree.labels("train"), kind="stable")
    np.testing.assert_array_equal(data.images("train"), tree.images("train")[order])
    assert data.names("train")[0] == "train-00000-of-00001.parquet/oak/0.png"


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct without names"])
def test_one_file_of_bytes_is_split_by_an_option_or_a_column(tmp_path: Path, kind: str) -> None:
    pictures = [picture(i) for i in range(10)]
    image = {
        "binary": pa.array(pictures, pa.binary()),
        "large_binary": pa.array(pictures, pa.large_binary()),
        "struct without names": [{"bytes": data} for data in pictures],
    }[kind]
    labels = ["cat", "dog"] * 5
    path = write(tmp_path / "photos.parquet", image=image, label=labels)
    with pytest.raises(DataError, match="no image is held out") as caught:
        ready(tmp_path, path)
    assert "`val_share` 0.1" in caught.value.fix and "`split_column`" in caught.value.fix
    data = ready(tmp_path, path, val_share=0.2)
    assert data.meta.counts == {"train": 8, "val": 2} and data.meta.classes == ["cat", "dog"]
    assert data.meta.source["kind"] == "archive"
    split = ["train"] * 6 + ["validation", "test"] * 2
    path = write(tmp_path / "more.parquet", image=image, label=labels, split=split)
    assert ready(tmp_path, path, "more").meta.counts == {"train": 6, "val": 2, "test": 2}
    path = write(tmp_path / "other.parquet", photo=image, kind=labels, part=split)
    chosen = {"image_column": "photo", "label_column": "kind", "split_column": "part"}
    other = ready(tmp_path, path, "other", **chosen)
    assert other.meta.fingerprint == ready(tmp_path, tmp_path / "more.parquet", "more").meta.fingerprint


def test_files_without_classes_or_split_are_left_out_and_said(
    tmp_path: Path, listening: ListeningProgress
) -> None:
    folder = as_parquet(split_files(["cat", "dog"]), tmp_path / "p", names=["cat", "dog"])
    parquet.write_table(
        pa.table({"image": [{"bytes": picture(1), "path": "1"}], "label": [-1]}).replace_schema_metadata(
            parquet.read_schema(next(folder.iterdir())).metadata
        ),
        folder / "test-00000-of-00001.parquet",
    )
    write(folder / "unsupervised-00000.parquet", image=[picture(2)], label=["cat"])
    data = prepare("image_folder", root=tmp_path, source=folder, progress=listening)
    assert data.meta.counts == {"train": 6, "val": 4}
    warnings = "; ".join(listening.warnings)
    assert "the 1 images of test-00000-of-00001.parquet, which have no classes" in warnings
    assert "not used: 'unsupervised-00000.parquet', whose name has no split" in warnings
    # The source is recorded as for any folder.
    write(folder / "train-00001.parquet", image=[picture(3)], label=["cat"])
    with pytest.raises(DataError, match=r"1 file is new \(train-00001.parquet\)"):
        prepare("image_folder", root=tmp_path, source=folder)


THREE = [picture(i) for i in range(3)]
NONE = {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}
WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a class that is none": (
        lambda path: write(path / "x.parquet", image=[picture(0)], label=[[1, 2]]),
        "x.parquet, row 1: the class is no text and no number",
    ),
    "some without a class": (
        lambda path: write(path / "x.parquet", image=[picture(0)] * 2, label=["a", None]),
        "1 of 2 rows have no class",
    ),
    "an empty class": (
        lambda path: write(path / "x.parquet", image=[picture(0)], label=[" "]),
        "row 1: the class is empty",
    ),
    "names of images": (
        lambda path: write(path / "x.parquet", image=["0.png"], label=["a"]),
        "the column 'image' is of type string and holds no image files",
    ),
    "an unknown split": (
        lambda path: write(path / "x.parquet", image=[picture(0)], label=["a"], split=["extra"]),
        "row 1: 'extra' is no split",
    ),
    "an image that is none": (
        lambda path: write(path / "x.parquet", image=[b"no image", *THREE], label=[0, 0, 1, 1]),
        "x.parquet/00000000: not an image",
    ),
    "no image": (
        lambda path: write(path / "x.parquet", image=[None, *THREE], label=[0, 0, 1, 1]),
        "x.parquet/00000000 has no image",
    ),
    "no rows": (
        lambda path: write(path / "x.parquet", **NONE),
        "it names no images",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, kind: str) -> None:
    make, words = WRONG[kind]
    with pytest.raises(DataError, match=re.escape(words)):
        ready(tmp_path, make(tmp_path), val_share=None if kind == "an unknown split" else 0.5)


def test_columns_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", photo=[picture(0)], label=["a"])
    with pytest.raises(UsageError, match="which column it is, is not clear; there are 'photo', 'label'"):
        ready(tmp_path, path)
    with pytest.raises(UsageError, match="`nested` means nothing for a Parquet file"):
        ready(tmp_path, path, nested=True)
    with pytest.raises(UsageError, match="its images are no files of their own"):
        list_images("image_folder", root=tmp_path, source=as_parquet(split_files("ab"), tmp_path / "p"))


def test_a_tree_of_files_is_written_of_one(tmp_path: Path) -> None:
    files = split_files(["cat", "dog"])
    folder = write_image_tree("image_folder", root=tmp_path, source=as_parquet(files, tmp_path / "p"))
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    assert found == files


def test_it_is_a_table_of_image_files(tmp_path: Path) -> None:
    files = split_files(["cat", "dog"])
    tree = as_folder(files, tmp_path / "tree")
    rows = [(name, *name.split("/")[:2]) for name in sorted(files, reverse=True)]
    names, splits, labels = zip(*rows, strict=True)
    table = write(tmp_path / "labels.parquet", file_name=list(names), split=list(splits), label=list(labels))
    found = ready(tmp_path, tree, "table", labels=table).meta
    assert found.fingerprint == ready(tmp_path, tree, "tree").meta.fingerprint
