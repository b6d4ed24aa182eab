"""CLI options of commands that read image files: size, split, labels and decoding."""

from pathlib import Path
from typing import Annotated

import typer

from neuscale.errors import UsageError

Size = Annotated[int | None, typer.Option("--size", help="Side in pixels to which image files are scaled.")]

Fit = Annotated[
    str | None,
    typer.Option(
        "--fit",
        help="With --size: crop (scale to cover, keep the middle; the default), pad (whole image, black"
        " around it) or squash (change its proportions).",
    ),
]

ValShare = Annotated[
    float | None,
    typer.Option("--val-share", help="Hold out this share of each class, where there is no val folder."),
]

Folds = Annotated[int | None, typer.Option("--folds", help="Number of folds to divide each class into.")]

Fold = Annotated[int | None, typer.Option("--fold", help="Fold to hold out for validation, from 0.")]

SplitSeed = Annotated[
    int | None, typer.Option("--split-seed", help="Random seed of --val-share and --folds.")
]

Nested = Annotated[
    bool | None,
    typer.Option(
        "--nested/--no-nested",
        help="Every folder that holds images is a class, or only those directly below train and val.",
    ),
]

Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="A CSV, TSV, JSON Lines or Parquet file of images and classes."),
]

ImageColumn = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        help="Image column of --labels or Parquet; by default image, file, …",
    ),
]

LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="Label column; by default label or class.")
]

SplitColumn = Annotated[
    str | None, typer.Option("--split-column", help="Name of the column that holds train, val or test.")
]

MultiLabel = Annotated[
    bool | None,
    typer.Option(
        "--multi-label",
        help="Images may have several labels: a list, several rows, or ones in an array.",
    ),
]

LabelSeparator = Annotated[
    str | None,
    typer.Option("--label-separator", help="Separator of several labels in the label column: '|'."),
]

LabelColumns = Annotated[
    str | None,
    typer.Option("--label-columns", help="Label columns that hold 0 or 1: cat,dog,bird."),
]

Encoding = Annotated[
    str | None,
    typer.Option("--encoding", help="Encoding of an archive's file names, if not declared: cp932, gbk."),
]

ValueRange = Annotated[
    str | None,
    typer.Option("--value-range", help="Values of 16-bit images that are mapped to black and white: 0:4095."),
]


def value_range_of(text: str | None) -> tuple[int, int] | None:
    """Parse `--value-range` LOW:HIGH into two integers. Raises UsageError if it is malformed."""
    if text is None:
        return None
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal()):
        raise UsageError(f"--value-range {text}: expected the lowest and the highest value, as 0:4095.")
    return int(low), int(high)
