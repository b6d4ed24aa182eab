"""Prepared data sets: packed, or kept as image files."""

from pathlib import Path

import numpy as np
from PIL import Image

from neuscale.data.formats.image_list import ListedDataset, list_command, listed_path
from neuscale.data.formats.packed import PackedDataset, packed_path, prepare_command
from neuscale.errors import UsageError
from neuscale.paths import data_root
from neuscale.pictures import labelled_rows, scaled_size

# Limits of the longer side of an image in a picture, in pixels.
SMALLEST_SIDE, LARGEST_SIDE = 40, 96

Dataset = PackedDataset | ListedDataset


def prepared_names(root: Path | None = None) -> list[str]:
    """Sorted names of the prepared data sets, without checking that they are intact."""
    root = root if root is not None else data_root()
    folders = [folder for folder in (root / "packed", root / "listed") if folder.is_dir()]
    paths = (path for folder in folders for path in folder.iterdir())
    return sorted({path.name for path in paths if path.is_dir() and not path.name.startswith(".")})


def is_prepared(name: str, root: Path | None = None) -> bool:
    """True if a data set of this name exists, intact or not."""
    return packed_path(name, root).is_dir() or listed_path(name, root).is_dir()


def open_prepared(name: str, root: Path | None = None) -> Dataset:
    """Open the data set of this name; the packed one if both forms exist. Raises DataError."""
    if not packed_path(name, root).is_dir() and listed_path(name, root).is_dir():
        return ListedDataset.open(listed_path(name, root))
    return PackedDataset.open(packed_path(name, root))


def check_split(data: Dataset, split: str) -> None:
    """Raise UsageError if the data set does not have the split."""
    if split not in data.meta.splits:
        there = data.meta.splits
        raise UsageError(
            f"`split` {split}: {data.meta.name} has {', '.join(there[:-1])} and {there[-1]}.",
            "Choose one of these.",
        )


def remedy(data: Dataset) -> str:
    """The command that prepares a damaged data set again."""
    if isinstance(data, ListedDataset):
        return list_command(data.meta.name)
    return prepare_command(data.meta.name, force=True)


def sample_grid(data: Dataset, split: str = "train", columns: int = 10, rows: int = 40) -> Image.Image:
    """Picture of the first `columns` images of each class, beside the name of the class.

    If there are more than `rows` classes, `rows` evenly spaced ones are shown. Small images are enlarged by
    an integer factor, large ones are scaled down.
    """
    meta, labels = data.meta, data.labels(split)
    table = meta.label_table()
    chosen = np.unique(np.linspace(0, meta.num_classes - 1, min(rows, meta.num_classes)).astype(int))
    shown = [
        (
            meta.classes[label],
            [data.image(split, int(index)) for index in np.flatnonzero(table[labels, label])[:columns]],
        )
        for label in chosen
    ]
    return labelled_rows(shown, columns, _shown_size(meta.height, meta.width))


def _shown_size(height: int, width: int) -> tuple[int, int]:
    largest = max(height, width)
    factor = -(-SMALLEST_SIDE // largest) if largest < SMALLEST_SIDE else min(1.0, LARGEST_SIDE / largest)
    return scaled_size(height, width, factor)
