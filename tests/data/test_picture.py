"""The picture of a data set shows each class's own images beside its name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import TreeBuilder
from neuscale.data.packed import PackedDataset
from neuscale.data.picture import GAP, LABEL_WIDTH, sample_grid, save_picture
from neuscale.data.prepare import prepare
from neuscale.errors import UserError


def packed(build_image_tree: TreeBuilder, folder: Path, size: tuple[int, int]) -> PackedDataset:
    tree = build_image_tree(folder / "tree", train=3, size=size)
    return prepare("image_folder", root=folder, source=tree, save_as="pets")


def test_small_images_are_enlarged_pixel_by_pixel(build_image_tree: TreeBuilder, tmp_path: Path) -> None:
    data = packed(build_image_tree, tmp_path, (8, 8))
    grid = np.asarray(sample_grid(data, columns=4))
    labels = data.labels("train")
    for label in range(3):
        for column, index in enumerate(np.flatnonzero(labels == label)):
            top, left = GAP + label * (40 + GAP), LABEL_WIDTH + column * (40 + GAP)
            shown = grid[top : top + 40 : 5, left : left + 40 : 5]
            assert np.array_equal(shown, data.images("train")[index].transpose(1, 2, 0))
    assert (grid[:, LABEL_WIDTH + 3 * (40 + GAP) :] == 255).all(), "no class has a fourth image"
    assert (grid[:, :LABEL_WIDTH] < 100).any(), "the names are written"


def test_large_images_are_made_smaller(build_image_tree: TreeBuilder, tmp_path: Path) -> None:
    data = packed(build_image_tree, tmp_path, (300, 200))
    assert sample_grid(data, columns=2).size == (LABEL_WIDTH + 2 * (96 + GAP), 3 * (64 + GAP) + GAP)


def test_it_is_a_png_wherever_it_is_written(build_image_tree: TreeBuilder, tmp_path: Path) -> None:
    picture = sample_grid(packed(build_image_tree, tmp_path, (8, 8)))
    save_picture(picture, tmp_path / "new" / "pets.png")
    with Image.open(tmp_path / "new" / "pets.png") as image:
        assert image.format == "PNG"
    with pytest.raises(UserError, match="pets"):
        save_picture(picture, tmp_path / "tree" / "train" / "cat" / "0000.png" / "pets.png")
