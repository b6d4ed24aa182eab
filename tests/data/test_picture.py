"""The sample grid of a data set shows each class's own images beside its name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from conftest import TreeBuilder
from neuscale.data.datasets import _shown_size, sample_grid
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare
from neuscale.errors import UserError
from neuscale.pictures import GAP, LABEL_WIDTH, save_picture, shortened


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


@pytest.fixture
def uneven(tmp_path: Path) -> PackedDataset:
    """Images of 12×20 pixels (width × height) of one colour: red encodes the class, green the number."""
    for split, counts in (("train", (2, 5, 1, 4, 3)), ("val", (1, 2, 3, 1, 1))):
        for label, count in enumerate(counts):
            folder = tmp_path / "tree" / split / "abcde"[label]
            folder.mkdir(parents=True)
            for number in range(count):
                color = (40 * label, 30 * number, 200 if split == "val" else 100)
                Image.new("RGB", (12, 20), color).save(folder / f"{number}.png")
    return prepare("image_folder", root=tmp_path, source=tmp_path / "tree", save_as="uneven")


@pytest.mark.parametrize(("split", "blue"), [("train", 100), ("val", 200)])
def test_each_row_is_a_class_of_those_shown_and_each_column_its_next_image(
    uneven: PackedDataset, split: str, blue: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three rows show the first, middle and last of five classes; 12×20 pixels become 24×40."""
    written: list[tuple[int, str]] = []
    write = ImageDraw.ImageDraw.text

    def text(
        self: ImageDraw.ImageDraw, at: tuple[int, int], name: str, *rest: object, **more: object
    ) -> None:
        written.append((at[1], name))
        assert at[0] < LABEL_WIDTH and more["anchor"] == "rm"
        write(self, at, name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    grid = np.asarray(sample_grid(uneven, split, columns=3, rows=3))
    assert grid.shape[:2] == (3 * (40 + GAP) + GAP, LABEL_WIDTH + 3 * (24 + GAP))
    counts = {"train": {0: 2, 2: 1, 4: 3}, "val": {0: 1, 2: 3, 4: 1}}[split]
    for row, (label, count) in enumerate(counts.items()):
        top = GAP + row * (40 + GAP)
        for column in range(3):
            left = LABEL_WIDTH + column * (24 + GAP)
            color = (40 * label, 30 * column, blue) if column < count else (255, 255, 255)
            assert (grid[top : top + 40, left : left + 24] == color).all()
            assert (grid[top : top + 40, left + 24 : left + 24 + GAP] == 255).all()
        assert written[row] == (top + 20, "abcde"[label])


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [
        (39, 20, (78, 40)),
        (40, 30, (40, 30)),
        (96, 50, (96, 50)),
        (97, 97, (96, 96)),
        (100, 192, (50, 96)),
        (1000, 4, (96, 1)),
        (28, 28, (56, 56)),
        (3, 5, (24, 40)),
    ],
)
def test_small_images_are_enlarged_to_40_and_large_ones_shown_at_96(
    height: int, width: int, shown: tuple[int, int]
) -> None:
    assert _shown_size(height, width) == shown[::-1]


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


def test_a_long_name_ends_in_an_ellipsis_as_late_as_it_can() -> None:
    font = ImageFont.load_default(13)
    name = "Labrador retriever, golden retriever"
    room = int(font.getlength(name)) + 1
    assert shortened(name, font, room) == name
    short = shortened(name, font, room // 2)
    kept = len(short) - 1
    assert short == name[:kept] + "…" and font.getlength(short) <= room // 2
    assert font.getlength(name[: kept + 1] + "…") > room // 2
    assert shortened(name, font, 0) == "…"
