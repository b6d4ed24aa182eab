"""Lists of image files that are damaged, or made again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.errors import DataError


def test_a_damaged_list_is_named_and_made_anew(build_image_tree: Callable[..., Path], tmp_path: Path) -> None:
    tree = build_image_tree(tmp_path / "tree", train=4, val=2)
    data = list_images("image_folder", root=tmp_path / "data", source=tree, save_as="pets")
    path = data.folder / "train_files.jsonl"
    path.write_bytes(path.read_bytes().replace(b"[0", b"[1", 1))
    with pytest.raises(DataError, match=r"(?s)train_files\.jsonl.*changed.*--layout files"):
        ListedDataset.open(data.folder)
    again = list_images("image_folder", root=tmp_path / "data", source=tree, save_as="pets")
    assert again.meta.fingerprint == data.meta.fingerprint
    tree.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"(?s)not there any more"):
        ListedDataset.open(data.folder)


def test_listing_the_same_images_again_is_no_work_and_other_images_are_not_replaced(
    both: tuple[PackedDataset, ListedDataset], build_image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    _, listed = both
    root = listed.folder.parent.parent
    before = (listed.folder / "meta.json").stat().st_mtime_ns
    again = list_images("image_folder", root=root, source=listed.files_folder, size=12, save_as="noise")
    assert again.meta.fingerprint == listed.meta.fingerprint
    assert (listed.folder / "meta.json").stat().st_mtime_ns == before
    other = build_image_tree(tmp_path / "other")
    with pytest.raises(DataError, match=r"(?s)lists .* already.*Use `force`"):
        list_images("image_folder", root=root, source=other, save_as="noise")
    assert both[0].meta.mean == listed.meta.mean, "packed or listed, they are normalised alike"
