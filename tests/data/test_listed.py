"""A list of image files that is not what it was."""

from collections.abc import Callable
from pathlib import Path

import pytest

from neuscale.data.listed import ListedDataset
from neuscale.data.listed_writer import list_images
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
