"""Records and columns of a label table in CSV, TSV or JSON Lines."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from neuscale.data.sources.class_folders import listed
from neuscale.data.sources.options import SourceOptions
from neuscale.data.sources.record_labels import column_names
from neuscale.errors import DataError, UsageError
from neuscale.untrusted import parse_json

# Common names of the columns; Hugging Face's image folders have `file_name`.
IMAGE_COLUMNS = (
    "file_name",
    "filename",
    "image",
    "file",
    "path",
    "filepath",
    "image_path",
    "image_id",
    "id",
    "name",
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "species", "breed")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold_name")


def delimited(table: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a CSV or TSV with a header line. Raises DataError, naming the line."""
    head = text.partition("\n")[0]
    delimiter = "\t" if table.lower().endswith(".tsv") else max(",;\t|", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{table}, line {reader.line_num}: {len(values)} values for {len(header)} columns.",
                    "Quote a value that holds the delimiter.",
                )
            yield reader.line_num, {name: value.strip() for name, value in zip(header, values, strict=True)}
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: {error}.", "Correct the line.") from None


def json_lines(table: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a JSON Lines file, one object per line. Raises DataError, naming the line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{table}, line {number}: not JSON ({error}).", "Correct the line.") from None
        if not isinstance(record, dict):
            raise DataError(f"{table}, line {number}: not an object with fields.", "Correct the line.")
        yield number, record


def columns_of(
    table: str, there: Sequence[str], options: SourceOptions
) -> tuple[str, tuple[str, ...], str | None]:
    """Names of the image column, the label columns (one per class with `label_columns`) and the split column.

    Raises UsageError if a requested column is missing, or if the image or label column is not clear.
    """

    def chosen(asked: str | None, option: str, usual: Sequence[str], needed: bool) -> str | None:
        if asked is not None:
            if asked not in there:
                raise UsageError(f"{table}: there is no column '{asked}'; there are {listed(there)}.")
            return asked
        lower = {name.lower(): name for name in there}
        found = next((lower[name] for name in usual if name in lower), None)
        if found is None and needed:
            raise UsageError(
                f"{table}: which column it is, is not clear; there are {listed(there)}.",
                f"Set `{option}`.",
            )
        return found

    image = chosen(options.image_column, "image_column", IMAGE_COLUMNS, True)
    if options.label_columns is not None:
        asked = column_names(options) or []
        labels = [chosen(name, "label_columns", (), True) for name in asked]
    else:
        labels = [chosen(options.label_column, "label_column", LABEL_COLUMNS, True)]
    split = chosen(options.split_column, "split_column", SPLIT_COLUMNS, False)
    assert image is not None
    return (
        image,
        tuple(label for label in labels if label is not None),
        None if options.splits and options.split_column is None else split,
    )
