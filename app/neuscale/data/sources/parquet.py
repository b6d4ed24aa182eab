"""Images in Parquet files, as on the Hugging Face Hub: a column of image bytes and one of classes."""

import json
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuscale.data.sources.file_tree import check_size, check_text
from neuscale.data.sources.folder_tree import FolderTree
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.labelled import Labelled, labelled_source, splits_by_name
from neuscale.data.sources.listing import Listing
from neuscale.data.sources.options import SourceOptions
from neuscale.data.sources.parquet_rows import is_parquet, read_rows, schema_of
from neuscale.data.sources.record_labels import column_names, label_of
from neuscale.data.sources.split_names import split_of
from neuscale.data.sources.table_records import columns_of
from neuscale.errors import DataError

_NO_CLASS = -1  # label in Hugging Face's test splits whose classes are not published


@dataclass(frozen=True)
class _Columns:
    """The columns of a file: `pixels` has the image bytes, `file` (if any) the names of the image files."""

    pixels: str
    file: str | None
    labels: tuple[str, ...]
    split: str | None


class ParquetTree:
    """Images of Parquet files as a FileTree, named `<file>/<image name>`, or `<file>/<row>` without names.

    The size of an image is not known before it is read, so it is 0 in `files`.
    """

    def __init__(self, path: Path, listing: Listing | None) -> None:
        self.path = path
        self.listing = listing
        self.listing_bytes = 0
        self.warnings: list[str] = []
        self.folders: set[str] = set()
        self.files: dict[str, int] = {}
        self._columns: dict[str, _Columns] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, file: str, columns: _Columns, names: list[str]) -> None:
        """Add the images of a file, in the order of its rows."""
        self._columns[file], self._names[file] = columns, names
        self.files.update(dict.fromkeys(names, 0))

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See FileTree."""
        wanted = set(names)
        for file, there in self._names.items():
            here = wanted.intersection(there)
            if not here:
                continue
            rows = read_rows(str(self.path / file), self.path / file, [self._columns[file].pixels])
            for name, row in zip(there, rows, strict=True):
                if name not in here:
                    continue
                data = _inner(row, self._columns[file].pixels)
                if data is None:
                    raise DataError(
                        f"{self.path / file}: {name} has no image, at most the name of a file elsewhere.",
                        "Prepare the folder of these files, or save the data set with its images embedded.",
                    )
                check_size(self.path, name, len(data))
                yield name, data
                here.remove(name)
                if not here:
                    break

    def check_rest(self, used: Collection[str]) -> None:
        """Do nothing: there is nothing else to verify."""


def open_parquet(path: Path, folder: FolderTree | None, options: SourceOptions) -> ImageFilesSource:
    """Open the images of a Parquet file, or of those in `folder`, with their classes.

    Columns are found as in a table; numbers become class names if the file contains Hugging Face's features.
    The split comes from a column, or from the name of each file or its folder (train-00000-of-00002.parquet).
    A file whose images have no classes is left out with a warning. Raises DataError, naming the file, for
    rows without a class or an image, and as `labelled_source` does.
    """
    tree = ParquetTree(path if folder is not None else path.parent, folder.listing if folder else None)
    files = sorted(name for name in folder.files if is_parquet(name)) if folder is not None else [path.name]
    splits = splits_by_name(files, tree.warnings) if folder is not None else {path.name: None}
    images: list[Labelled] = []
    classes: Sequence[str] | None = None
    for file, split in splits.items():
        found, names = _images_of(tree, file, split, options)
        if names is not None and classes is not None and names != classes:
            raise DataError(f"{path}: {file}: other classes than in those before it.", "Give one of them.")
        classes = names if names is not None else classes
        images += found
    if not images and classes is not None:
        raise DataError(f"{path}: no image has a class.", "Give files with the classes.")
    return labelled_source(
        tree,
        images,
        options,
        str(path),
        classes=classes,
        how_to_split="`split_column` names a column of train, val and test",
        warnings=tree.warnings,
    )


def _images_of(
    tree: ParquetTree, file: str, split: str | None, options: SourceOptions
) -> tuple[list[Labelled], list[str] | None]:
    """Add a file to the tree; return its images and the names of its classes, if it has them."""
    path = tree.path / file
    schema = schema_of(path)
    columns = _columns(path, schema, options)
    names = _class_names(path, schema, columns.labels[0]) if options.label_columns is None else None
    files, labels, splits = [], [], []  # not the rows themselves, which are dicts and need more memory
    for row in read_rows(
        str(path), path, [each for each in (columns.file, *columns.labels, columns.split) if each]
    ):
        files.append(_inner(row, columns.file) if columns.file else None)
        labels.append([row[column] for column in columns.labels])
        splits.append(row[columns.split] if columns.split else None)
    # File names are used only if all are different, non-empty strings.
    plain = len(set(files)) == len(files) and all(isinstance(each, str) and each for each in files)
    members = [f"{file}/{name if plain else f'{row:08}'}" for row, name in enumerate(files)]
    for member in members if plain else ():
        check_text(path, member)
    tree.add(file, columns, members)
    found = []
    without = 0
    for number, (values, said, member) in enumerate(zip(labels, splits, members, strict=True), start=1):
        if None in values or (names is not None and values == [_NO_CLASS]):
            without += 1
            continue
        where = f"{path}, row {number}"
        held = split_of(str(said)) if columns.split else split
        if columns.split and held is None:
            raise DataError(f"{where}: '{said}' is no split.", "Use train, val and test.")
        record = dict(zip(columns.labels, values, strict=True))
        found.append(Labelled(member, label_of(where, record, columns.labels, options, names), held))
    if without and found:
        raise DataError(
            f"{path}: {without:,} of {len(labels):,} rows have no class.", "Complete or remove them."
        )
    if without:
        tree.warnings.append(f"left out: the {without:,} images of {file}, which have no classes")
    return found, names if names is not None else column_names(options)


def _columns(path: Path, schema: Any, options: SourceOptions) -> _Columns:
    from pyarrow import types

    image, label, split = columns_of(str(path), list(schema.names), options)
    kind = schema.field(image).type
    if types.is_struct(kind) and "bytes" in [each.name for each in kind]:
        named = "path" in [each.name for each in kind]
        return _Columns(f"{image}.bytes", f"{image}.path" if named else None, label, split)
    if types.is_binary(kind) or types.is_large_binary(kind):
        return _Columns(image, None, label, split)
    hint = "Set `image_column`."
    if types.is_string(kind) or types.is_large_string(kind):
        hint = "If it names files, give their folder as the source, and this file as `labels`."
    raise DataError(f"{path}: the column '{image}' is of type {kind} and holds no image files.", hint)


def _class_names(path: Path, schema: Any, label: str) -> list[str] | None:
    """Class names, if Hugging Face's `datasets` recorded a ClassLabel; else None."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        # For a list, the feature of its items, in both forms that `datasets` has written.
        inner = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        names = inner["names"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return None
    names = [unicodedata.normalize("NFC", name) for name in names]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: two of its classes have one name.", "Correct its features.")
    return names


def _inner(row: Mapping[str, Any], column: str) -> Any:
    """The value of `column`, or of `column.field` for a column of structs."""
    name, _, field = column.rpartition(".")
    if column in row:
        return row[column]
    value = row[name]
    return value[field] if value is not None else None
