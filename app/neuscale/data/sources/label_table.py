"""Labels from a table: a CSV, TSV, JSON Lines or Parquet file with images, classes and splits."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from neuscale.data.sources.class_folders import listed
from neuscale.data.sources.decode import is_image
from neuscale.data.sources.file_tree import FileTree
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.labelled import Labelled, labelled_source
from neuscale.data.sources.options import SourceOptions
from neuscale.data.sources.parquet_rows import is_parquet, read_rows
from neuscale.data.sources.record_labels import column_names, label_of
from neuscale.data.sources.split_names import split_of
from neuscale.data.sources.table_records import columns_of, delimited, json_lines
from neuscale.errors import DataError, UsageError, is_refused, read_error
from neuscale.untrusted import read_regular

MAX_TABLE_BYTES = 1 << 30

_MOST_NAMED = 5


@dataclass(frozen=True)
class _Table:
    """A table: its name for messages, its content, its folder in the tree, and its split.

    `above`: path from the table's folder to the tree, if the tree lies below it.
    """

    name: str
    content: bytes
    folder: str = ""
    split: str | None = None
    above: str = ""


@dataclass(frozen=True)
class _Row:
    """A row of a table, for one image."""

    table: _Table
    number: int
    image: str
    label: str | tuple[str, ...]
    split: str | None

    @property
    def where(self) -> str:
        """Table and line number, for messages."""
        return f"{self.table.name}, line {self.number}"


def open_label_table(tree: FileTree, options: SourceOptions) -> ImageFilesSource:
    """Open the images of a folder or archive that the table `options.labels` lists, with classes and splits.

    The table is a file on disk or in the tree: one file, or one in the folder of each split. An image name is
    a path relative to the table's folder, to the top of the tree or to a folder that contains all images; its
    suffix may be missing. Classes are sorted by name, or by number if all are numbers. Raises UsageError for
    a missing table or column, and DataError, naming the line, for an image that is missing or, without
    `multi_label`, has two classes, and if no image is held out.
    """
    path = tree.path
    tables = _tables(tree, path, options)
    where = tables[0].name
    rows = [row for table in tables for row in _rows(table, options)]
    if not rows:
        raise DataError(f"{where}: it names no images.", "Give a table with a line for each image.")
    images = _images(rows, _files(tree, path, rows), bool(options.multi_label))
    return labelled_source(
        tree,
        images,
        options,
        where,
        classes=column_names(options),
        how_to_split="`split_column` names a column of train, val and test",
        warnings=[*tree.warnings, *_unnamed(tree, len(images))],
    )


def table_checksum(table: Path) -> str | None:
    """SHA-256 of a table on disk, for the record of a data set; None for a table in the tree."""
    return hashlib.sha256(_content(table)).hexdigest() if table.is_file() else None


def _tables(tree: FileTree, path: Path, options: SourceOptions) -> list[_Table]:
    assert options.labels is not None
    given = options.labels
    if given.is_file():
        folder = above = ""
        if path.resolve().is_relative_to(given.resolve().parent):
            above = f"{path.resolve().relative_to(given.resolve().parent).as_posix()}/"
        if path.is_dir() and given.resolve().parent.is_relative_to(path.resolve()):
            inner = given.resolve().parent.relative_to(path.resolve()).as_posix()
            folder = f"{inner}/" if inner != "." else ""
        split = split_of(folder.rstrip("/").rpartition("/")[2])
        return [_Table(str(given), _content(given), folder, split, above)]
    name = given.as_posix()
    names = sorted(file for file in tree.files if file == name or file.endswith(f"/{name}"))
    found = []
    for file, content in tree.read(names):
        folder = file[: len(file) - len(file.rpartition("/")[2])]
        split = split_of(folder.rstrip("/").rpartition("/")[2])
        found.append(_Table(f"{path}: {file}", content, folder, split))
    if not found:
        raise UsageError(f"`labels` {given}: there is no such file, nor one in {path}.", "Give its path.")
    if len(found) > 1 and any(table.split is None for table in found):
        raise UsageError(f"`labels` {given}: there are {listed(names)}.", "Give the path of one.")
    return found


def _content(table: Path) -> bytes:
    try:
        return read_regular(table.resolve(), MAX_TABLE_BYTES)
    except OSError as error:
        if is_refused(error):
            raise read_error(error, table) from None
        raise DataError(
            f"{table}: {error.strerror}.", "Give a CSV, TSV, JSON Lines or Parquet file."
        ) from None


def _rows(table: _Table, options: SourceOptions) -> Iterator[_Row]:
    """The rows of a table, each validated."""
    columns: tuple[str, tuple[str, ...], str | None] | None = None
    for number, record in _records(table):
        if columns is None:
            columns = columns_of(table.name, list(record), options)
        image, labels = record.get(columns[0]), [record.get(column) for column in columns[1]]
        split = record.get(columns[2]) if columns[2] else None
        where = f"{table.name}, line {number}"
        if image in (None, "") or (not options.several_labels and labels[0] in (None, "")):
            raise DataError(f"{where}: it lacks the image or its class.", "Complete or remove the line.")
        if not isinstance(image, str | int):
            raise DataError(f"{where}: the image is no text and no number.", "Give the name of its file.")
        held = split_of(str(split)) if columns[2] else table.split
        if columns[2] and held is None:
            raise DataError(f"{where}: '{split}' is no split.", "Use train, val and test.")
        yield _Row(table, number, str(image), label_of(where, record, columns[1], options), held)


def _records(table: _Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and values of each row."""
    if is_parquet(table.name):
        yield from enumerate(read_rows(table.name, io.BytesIO(table.content)), start=1)
        return
    try:
        text = table.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table.name}: not UTF-8 ({error.reason} at byte {error.start}).", "Save it as UTF-8."
        ) from None
    as_json = table.name.lower().endswith((".jsonl", ".ndjson"))
    yield from json_lines(table.name, text) if as_json else delimited(table.name, text)


def _files(tree: FileTree, path: Path, rows: Sequence[_Row]) -> list[str]:
    """File of each row. Raises DataError if files are missing."""
    tops, stems = _tops(tree), _stems(tree)
    found, missing = [], []
    for row in rows:
        name = PurePosixPath(row.image.replace("\\", "/")).as_posix()
        names = [prefix + name for prefix in (row.table.folder, *tops)]
        names.append(name.removeprefix(row.table.above))
        file = next((each for each in names if each in tree.files), None)
        file = file or next((stems[each] for each in names if each in stems), None)
        if file is None:
            missing.append(row)
        else:
            found.append(file)
    if missing:
        shown = ", ".join(f"{row.image} (line {row.number})" for row in missing[:_MOST_NAMED])
        more = f" and {len(missing) - _MOST_NAMED:,} more" if len(missing) > _MOST_NAMED else ""
        count = f"{len(missing):,} of {len(rows):,} images are not in {path}"
        raise DataError(
            f"{missing[0].table.name}: {count}: {shown}{more}.",
            "Give the folder that the names start from, or remove these lines.",
        )
    return found


def _images(rows: Sequence[_Row], files: Sequence[str], multi_label: bool) -> list[Labelled]:
    """Images of the rows; with `multi_label` an image has the labels of all its rows.

    Raises DataError for an image with two rows without `multi_label`, or with rows in two splits.
    """
    seen: dict[str, _Row] = {}
    labels: dict[str, str | tuple[str, ...]] = {}
    for row, file in zip(rows, files, strict=True):
        before = seen.setdefault(file, row)
        known = labels.setdefault(file, row.label)
        if before is row:
            continue
        if not multi_label:
            words = "twice" if before.label == row.label else f"as '{before.label}' and as '{row.label}'"
            raise DataError(
                f"{row.where}: {file} is named {words}, first in line {before.number}.",
                "Remove one, or set `multi_label` where an image may have several labels.",
            )
        if before.split != row.split:
            raise DataError(
                f"{row.where}: {file} is for {row.split}, and in line {before.number} for {before.split}.",
                "Remove one.",
            )
        labels[file] = tuple(sorted({*known, *row.label}))
    return [Labelled(file, labels[file], row.split) for file, row in seen.items()]


def _tops(tree: FileTree) -> list[str]:
    """Possible prefixes of names: the top, and the nested folders that each contain all images."""
    images = [name for name in tree.files if is_image(name)]
    found = [""]
    if images:
        first, last = min(images), max(images)  # a prefix that both share, all images share
        for shared, other in zip(first.split("/")[:-1], last.split("/")[:-1], strict=False):
            if shared != other:
                break
            found.append(f"{found[-1]}{shared}/")
    return found


def _stems(tree: FileTree) -> Mapping[str, str]:
    """Name without suffix → name, if that is unique among the images."""
    stems = Counter(name.rpartition(".")[0] for name in tree.files if is_image(name))
    return {s: name for name in tree.files if is_image(name) and stems[s := name.rpartition(".")[0]] == 1}


def _unnamed(tree: FileTree, named: int) -> list[str]:
    """Warning about images that the table does not list, if there are any."""
    count = sum(is_image(name) for name in tree.files) - named
    return (
        [f"left out: {count:,} image{'s' * (count != 1)} that the table does not name"] if count > 0 else []
    )
