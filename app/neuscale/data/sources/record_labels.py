"""The class of a record in a table or Parquet file, or its classes for multi-label data."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from neuscale.data.sources.options import SourceOptions
from neuscale.errors import DataError

_SEVERAL = "Give one class an image, or set `multi_label`."


def label_of(
    where: str,
    record: Mapping[str, Any],
    columns: Sequence[str],
    options: SourceOptions,
    names: Sequence[str] | None = None,
) -> str | tuple[str, ...]:
    """The class of a record, or with `options.several_labels` a tuple of all classes, possibly empty.

    `columns`: one column, or with `options.label_columns` one column of 0 and 1 per class. `names`: class
    names, if the record contains numbers. Raises DataError for anything else, with `where` for the record.
    """
    if options.label_columns is not None:
        return tuple(column for column in columns if _is_one(f"{where}: {column}", record.get(column)))
    value = record.get(columns[0])
    if not options.several_labels:
        return _class_name(where, value, names)
    if isinstance(value, str) and options.label_separator is not None:
        parts: Sequence[Any] = [part for part in value.split(options.label_separator) if part.strip()]
    elif isinstance(value, list):
        parts = value
    else:
        parts = [] if value in (None, "") else [value]
    return tuple(sorted({_class_name(where, part, names) for part in parts}))


def column_names(options: SourceOptions) -> list[str] | None:
    """The columns of `options.label_columns`, which are the classes; None without this option."""
    if options.label_columns is None:
        return None
    return [name.strip() for name in options.label_columns.split(",")]


def _class_name(where: str, value: object, names: Sequence[str] | None) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: the class is no text and no number.", _SEVERAL)
    if isinstance(value, int) and names is not None:
        if not 0 <= value < len(names):
            raise DataError(f"{where}: class {value} of {len(names)}.", "Correct the row.")
        return names[value]
    text = unicodedata.normalize("NFC", str(value)).strip()
    if not text:
        raise DataError(f"{where}: the class is empty.", "Complete or remove the row.")
    return text


def _is_one(where: str, value: object) -> bool:
    text = str(int(value)) if isinstance(value, bool) else str(value).strip()
    if text in ("0", "0.0"):
        return False
    if text in ("1", "1.0"):
        return True
    raise DataError(f"{where} is '{text}', neither 0 nor 1.", "Give 1 where the image has the label, else 0.")
