"""Validation images are held out by a share, by folds or by folders; test images are left alone."""

from pathlib import Path
from typing import Any

import pytest

from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.errors import DataError, UsageError

from .trees import as_folder, as_zip, picture, ready, split_files


@pytest.mark.parametrize("layout", ["photos/", "", "archive/photos/"])
def test_classes_alone_are_split_by_share(tmp_path: Path, layout: str) -> None:
    counts = {"cat": 20, "dog": 10, "fox": 3}
    files = {f"{layout}{name}/{i}.png": picture(i) for name, count in counts.items() for i in range(count)}
    archive = as_zip(files, tmp_path / "z")
    with pytest.raises(DataError, match="its folders of images are 'cat', 'dog', 'fox'") as caught:
        ready(tmp_path, archive)
    assert "`val_share` 0.1 takes a tenth of each" in caught.value.fix
    data = ready(tmp_path, archive, val_share=0.2)
    assert data.class_counts("val") == [4, 2, 1] and data.class_counts("train") == [16, 8, 2]
    plain = {name.removeprefix(layout): content for name, content in files.items()}
    folder = ready(tmp_path, as_folder(plain, tmp_path / "tree"), "folder", val_share=0.2)
    assert folder.meta.fingerprint == data.meta.fingerprint
    other = ready(tmp_path, archive, "other", val_share=0.2, split_seed=1)
    assert other.meta.counts == data.meta.counts and other.meta.fingerprint != data.meta.fingerprint
    recorded = {name: data.meta.source[name] for name in ("val_share", "split_seed")}
    assert recorded == {"val_share": 0.2, "split_seed": 0}
    with pytest.raises(DataError, match=r"prepared already, but with `val_share` 0\.2"):
        ready(tmp_path, archive, val_share=0.3)


def test_folds_hold_out_every_image_once(tmp_path: Path) -> None:
    files = {f"{name}/{i}.png": picture(1000 * k + i) for k, name in enumerate("ab") for i in range(11)}
    folder = as_folder(files, tmp_path / "tree")
    held = [ready(tmp_path, folder, f"f{fold}", folds=4, fold=fold) for fold in range(4)]
    images = [tuple(map(bytes, data.images("val"))) for data in held]
    assert sorted(len(part) for part in images) == [5, 5, 6, 6]
    assert len(set(sum(images, ()))) == 22
    for data in held:
        assert data.meta.counts["train"] + data.meta.counts["val"] == 22


@pytest.mark.parametrize(
    ("files", "options", "error", "words"),
    [
        (
            {"a/0.png": 1, "b/0.png": 1, "b/1.png": 1},
            {"val_share": 0.1},
            DataError,
            "the class 'a' has one image",
        ),
        ({"a/0.png": 1, "a/1.png": 1}, {"val_share": 0.9}, DataError, "all images would be held out"),
        (
            {"train/a/0.png": 1, "val/a/0.png": 1},
            {"val_share": 0.1},
            UsageError,
            "has images to validate, in 'val'",
        ),
        ({}, {"val_share": 1.0}, UsageError, "expected a share between 0 and 1"),
        ({}, {"folds": 5}, UsageError, "belong together"),
        ({}, {"folds": 5, "fold": 5}, UsageError, "`fold` 5 of 5"),
        ({}, {"folds": 1, "fold": 0}, UsageError, "two or more"),
        ({}, {"folds": 2, "fold": 0, "val_share": 0.5}, UsageError, "contradict"),
        ({}, {"fit": "pad"}, UsageError, "Set `size`"),
        ({}, {"size": 8, "fit": "stretch"}, UsageError, "expected crop, pad or squash"),
        ({}, {"value_range": (5, 5)}, UsageError, "between 0 and 65535"),
        ({"train/a/0.png": 1, "val/a/0.png": 1}, {"encoding": "gbk"}, UsageError, "this is a folder"),
        ({}, {"split_seed": 1}, UsageError, "`split_seed` is for"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tmp_path: Path, files: dict[str, int], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    tree = as_folder({name: picture(seed) for name, seed in files.items()}, tmp_path / "tree")
    with pytest.raises(error, match=words):
        ready(tmp_path, tree, **options)


def test_a_test_split_is_kept_and_nothing_else_touches_it(tmp_path: Path) -> None:
    files = split_files(["cat", "dog"]) | {
        f"test/{name}/{i}.png": picture(i) for name in ("cat", "dog") for i in (0, 1, 2)
    }
    for make in (
        lambda: ready(tmp_path, as_folder(files, tmp_path / "tree"), "packed"),
        lambda: list_images(
            "image_folder", root=tmp_path, source=tmp_path / "tree", save_as="listed", size=8
        ),
    ):
        data = make()
        assert data.meta.counts == {"train": 6, "val": 4, "test": 6}
        assert data.class_counts("test") == [3, 3] and data.verify() == []
    without = {name: content for name, content in files.items() if not name.startswith("test")}
    other = ready(tmp_path, as_folder(without, tmp_path / "without"), "without")
    packed = PackedDataset.open(tmp_path / "packed" / "packed")
    assert (packed.meta.mean, packed.meta.std) == (other.meta.mean, other.meta.std)
    assert packed.meta.fingerprint != other.meta.fingerprint
