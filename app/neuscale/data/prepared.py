"""Data sets that are there: packed, or kept as image files."""

from pathlib import Path

from neuscale.data.listed import ListedDataset, list_command, listed_path
from neuscale.data.packed import PackedDataset, packed_path, prepare_command
from neuscale.paths import data_root

Dataset = PackedDataset | ListedDataset


def prepared_names(root: Path | None = None) -> list[str]:
    """The names of the data sets that are there, sorted; whether they are intact is not looked at."""
    root = root if root is not None else data_root()
    folders = [folder for folder in (root / "packed", root / "listed") if folder.is_dir()]
    paths = (path for folder in folders for path in folder.iterdir())
    return sorted({path.name for path in paths if path.is_dir() and not path.name.startswith(".")})


def is_prepared(name: str, root: Path | None = None) -> bool:
    """Whether there is a data set of this name, intact or not."""
    return packed_path(name, root).is_dir() or listed_path(name, root).is_dir()


def open_prepared(name: str, root: Path | None = None) -> Dataset:
    """The data set of this name, packed where it is both. Raises DataError where there is none."""
    if not packed_path(name, root).is_dir() and listed_path(name, root).is_dir():
        return ListedDataset.open(listed_path(name, root))
    return PackedDataset.open(packed_path(name, root))


def remedy(data: Dataset) -> str:
    """The command that makes a damaged data set again."""
    if isinstance(data, ListedDataset):
        return list_command(data.meta.name)
    return prepare_command(data.meta.name, force=True)
