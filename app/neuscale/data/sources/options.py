"""Options for reading the user's files: size, splits, classes and names."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from neuscale.data.sources.decoding import Decoding, Observed, square
from neuscale.errors import UsageError

MAX_SIZE = 1024  # pixels per side


@dataclass(frozen=True)
class SourceOptions:
    """Options for reading the user's files; None means the default.

    `size`: side in pixels to which images are scaled. `fit`, `value_range`: see `Decoding`. `encoding`:
    encoding of the names in an archive. `nested`: every folder with images is a class. `val_share`: share
    of each class that is held out; `folds`, `fold`: number of folds, and index of the held-out one, from 0;
    `split_seed`: seed of either. `labels`: a label table, on disk or among the files. `image_column`,
    `label_column`, `split_column`: columns of a table or of Parquet files; for shards, `label_column` is a
    field of their JSON. Images may have several labels with `multi_label` (a list, several rows, or ones in
    an array), `label_separator` (between the labels in a cell) or `label_columns` (columns of 0 and 1,
    separated by commas).

    Raises UsageError for values that are not possible or not compatible.
    """

    size: int | None = None
    fit: str | None = None
    value_range: tuple[int, int] | None = None
    encoding: str | None = None
    nested: bool | None = None
    val_share: float | None = None
    folds: int | None = None
    fold: int | None = None
    split_seed: int | None = None
    labels: Path | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    multi_label: bool | None = None
    label_separator: str | None = None
    label_columns: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise UsageError(
                f"a size of {self.size} pixels is not possible.", f"Set `size` from 1 to {MAX_SIZE}."
            )
        if self.fit is not None and self.size is None:
            raise UsageError("`fit` says how images get one size, and there is none.", "Set `size`.")
        if self.val_share is not None and self.folds is not None:
            raise UsageError("`val_share` and `folds` contradict each other.", "Use only one of the two.")
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise UsageError(
                f"`val_share` {self.val_share}: expected a share between 0 and 1.", "For example 0.1."
            )
        if (self.folds is None) != (self.fold is None):
            raise UsageError(
                "`folds` and `fold` belong together.", "For example 5 and, for the first of them, 0."
            )
        if self.folds is not None and self.fold is not None and not 0 <= self.fold < self.folds > 1:
            raise UsageError(
                f"`fold` {self.fold} of {self.folds} `folds`: there have to be two or more, counted from 0.",
                f"Set `fold` from 0 to {max(self.folds - 1, 1)}.",
            )
        if self.split_seed is not None and not self.splits:
            raise UsageError("`split_seed` is for `val_share` and `folds`.", "Remove it, or set one of them.")
        if self.labels is not None and self.nested is not None:
            raise UsageError(
                "`nested` is for folders of classes, and `labels` for a table of them.", "Remove one."
            )
        if self.label_columns is not None and (self.label_column or self.label_separator) is not None:
            raise UsageError(
                "`label_columns` are one for each class, and `label_column` one for all.", "Use only one."
            )
        if self.label_separator == "":
            raise UsageError("`label_separator` is empty.", "Give what divides the labels, such as '|'.")
        self.decoding  # noqa: B018 - creating it checks its options

    @property
    def names(self) -> list[str]:
        """Names of the options that were given."""
        return list(self._given())

    @property
    def splits(self) -> bool:
        """True if the options hold out images."""
        return self.val_share is not None or self.folds is not None

    @property
    def several_labels(self) -> bool:
        """True if an image may have several labels, or none."""
        return bool(self.multi_label) or self.label_separator is not None or self.label_columns is not None

    @property
    def split_words(self) -> str:
        """Description of the held-out images."""
        if self.val_share is not None:
            return f"`val_share` {self.val_share:g}"
        return f"`fold` {self.fold} of `folds` {self.folds}"

    @property
    def decoding(self) -> Decoding:
        """The decoding of the images, with a fresh observer."""
        low, high = self.value_range or (0, 65535)
        return Decoding(square(self.size), self.fit or "crop", low, high, Observed())

    def record(self) -> dict[str, Any]:
        """The options that were given, for a data set's record, beside `size`."""
        given = {name: value for name, value in self._given().items() if name != "size"}
        if self.labels is not None:
            given["labels"] = str(self.labels)
        if self.splits:
            given["split_seed"] = self.split_seed or 0
        return given

    def difference(self, recorded: Mapping[str, Any]) -> str | None:
        """Description of the first given option that differs from a record; other options are ignored."""
        usual = {"fit": "crop", "nested": None, "value_range": [0, 65535], "split_seed": 0}
        for name, value in self._given().items():
            value = (
                list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
            )
            was = recorded.get(name, usual.get(name))
            if was != value:
                return f"with `{name}` {was}" if was is not None else f"without `{name}`"
        return None

    def _given(self) -> dict[str, Any]:
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) is not None
        }


USUAL = SourceOptions()
