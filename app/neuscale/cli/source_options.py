"""CLI options of commands that read image files: size, split, labels and decoding."""

from pathlib import Path
from typing import Annotated

import typer

from neuscale.errors import UsageError

Size = Annotated[int | None, typer.Option("--size", help="Side in pixels to make image files.")]

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

Folds = Annotated[int | None, typer.Option("--folds", help="Divide each class into so many parts.")]

Fold = Annotated[int | None, typer.Option("--fold", help="And hold out this one, counted from 0.")]

SplitSeed = Annotated[
    int | None, typer.Option("--split-seed", help="Another choice of --val-share or --folds.")
]

Nested = Annotated[
    bool | None,
    typer.Option(
        "--nested/--no-nested",
        help="Every folder with images is a class, or only the first below train and val.",
    ),
]

Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="A CSV, TSV, JSON Lines or Parquet file of images and classes."),
]

ImageColumn = Annotated[
    str | None,
    typer.Option("--image-column", help="Of --labels or Parquet, where it is not called image or so."),
]

LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="Likewise, where it is not called label or class.")
]

SplitColumn = Annotated[
    str | None, typer.Option("--split-column", help="Likewise: train, val or test of each image.")
]

MultiLabel = Annotated[
    bool | None,
    typer.Option(
        "--multi-label",
        help="An image may have several labels: in a list, in several rows, or as ones in an array.",
    ),
]

LabelSeparator = Annotated[
    str | None,
    typer.Option("--label-separator", help="Several labels, divided by this in their column: '|'."),
]

LabelColumns = Annotated[
    str | None,
    typer.Option("--label-columns", help="Several labels, a column of 0 and 1 for each: cat,dog,bird."),
]

Encoding = Annotated[
    str | None,
    typer.Option("--encoding", help="Of an archive's names, where it does not say: cp932, gbk."),
]

ValueRange = Annotated[
    str | None,
    typer.Option("--value-range", help="Values of 16-bit images that become black and white: 0:4095."),
]


def value_range_of(text: str | None) -> tuple[int, int] | None:
    """Parse `--value-range` LOW:HIGH into two integers. Raises UsageError if it is malformed."""
    if text is None:
        return None
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal()):
        raise UsageError(f"--value-range {text}: expected the lowest and the highest value, as 0:4095.")
    return int(low), int(high)
