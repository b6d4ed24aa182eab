"""Fixtures of the loader tests: the same images, packed and as files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.formats.write_image_list import list_images
from neuscale.data.prepare import prepare


@pytest.fixture(scope="module")
def both(
    build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[PackedDataset, ListedDataset]:
    """The same 40×30 images, packed at 12×12 pixels and listed as files at 12×12 pixels."""
    folder = tmp_path_factory.mktemp("images")
    tree = build_image_tree(folder / "tree", train=20, val=7, size=(40, 30))
    packed = prepare("image_folder", root=folder / "data", source=tree, size=12, save_as="noise")
    listed = list_images("image_folder", root=folder / "data", source=tree, size=12, save_as="noise")
    return packed, listed
