"""`neuscale data check`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuscale.cli.options import AsJson
from neuscale.cli.source_options import (
    Encoding,
    ImageColumn,
    LabelColumn,
    LabelColumns,
    Labels,
    LabelSeparator,
    MultiLabel,
    Nested,
    SplitColumn,
    ValShare,
    ValueRange,
    value_range_of,
)
from neuscale.errors import UsageError

if TYPE_CHECKING:
    from neuscale.data.datasets import Dataset
    from neuscale.data.sources.options import SourceOptions

# Side in pixels to which images that are not prepared are scaled: enough to compare them.
_SIDE = 64

_MOST_LINES = 8


def check_command(
    data: Annotated[
        str, typer.Argument(metavar="NAME|SOURCE", help="A prepared data set, or a folder or archive.")
    ],
    run: Annotated[
        str | None, typer.Option("--run", help="Also look for wrong labels, with the model of this run.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="Also write a page of HTML with the pictures.")
    ] = None,
    val_share: ValShare = None,
    nested: Nested = None,
    labels: Labels = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    multi_label: MultiLabel = None,
    label_separator: LabelSeparator = None,
    label_columns: LabelColumns = None,
    encoding: Encoding = None,
    value_range: ValueRange = None,
    as_json: AsJson = False,
) -> None:
    """Look for copies within and across splits, odd images and wrong labels.

    Prepared data keep the numbers, and runs that train on them record them. Labels are judged by a model
    that was not trained on them, or not for long: prepare with --folds, train on one part, check the other.
    """
    from neuscale.analysis.data_check import as_json as fields_of
    from neuscale.analysis.data_check import check_data, store_check
    from neuscale.analysis.data_check_page import write_check_page
    from neuscale.cli.console import print_json
    from neuscale.cli.progress import create_progress
    from neuscale.data.sources.options import SourceOptions
    from neuscale.runs.folder import find_run

    options = SourceOptions(
        _SIDE,
        "squash",
        value_range_of(value_range),
        encoding,
        nested,
        val_share,
        labels=labels,
        image_column=image_column,
        label_column=label_column,
        split_column=split_column,
        multi_label=multi_label,
        label_separator=label_separator,
        label_columns=label_columns,
    )
    progress = create_progress()
    model = find_run(run) if run is not None else None
    with _opened(data, options) as (opened, is_prepared):
        check = check_data(opened, model, progress)
        if is_prepared:
            store_check(opened, check, progress)
        if page is not None:
            write_check_page(opened, check, page)
    if as_json:
        print_json(fields_of(check))
    else:
        _show(check, page)


@contextmanager
def _opened(name: str, options: "SourceOptions") -> "Iterator[tuple[Dataset, bool]]":
    """Yield a data set and True if it is a prepared one; a folder or archive is prepared temporarily."""
    from neuscale.cli.progress import create_progress
    from neuscale.data.datasets import open_prepared, prepared_names
    from neuscale.data.prepare import prepare

    path = Path(name).expanduser()
    if not path.exists() or ("/" not in name and name in prepared_names()):
        if given := [option for option in options.names if option not in ("size", "fit")]:
            raise UsageError(
                f"`{given[0]}` is for a folder or archive, and {name} is a prepared data set.", "Remove it."
            )
        yield open_prepared(name), True
        return
    with TemporaryDirectory(prefix="neuscale-check-") as folder:
        opened = prepare(
            "image_folder",
            root=Path(folder),
            source=path,
            options=options,
            save_as="checked",
            skip_bad=True,
            progress=create_progress(),
        )
        yield opened, False


def _show(check: Any, page: Path | None) -> None:
    from rich.table import Table

    from neuscale.analysis.data_check import across_splits, in_several_classes
    from neuscale.analysis.data_check_page import findings
    from neuscale.cli.console import escape, out

    table = Table(title=f"check of {escape(check.name)}", title_justify="left", show_header=False)
    for row in findings(check):
        table.add_row(*map(escape, row))
    out.print(table)
    kinds = (
        ("in several splits", [group for group in check.equal + check.similar if across_splits(group)]),
        ("in several classes", [group for group in check.equal + check.similar if in_several_classes(group)]),
    )
    for what, groups in kinds:
        for group in groups[:_MOST_LINES]:
            named = "; ".join(f"{image.name} ({image.label}, {image.split})" for image in group[:4])
            out.print(f"{what}: {escape(named)}")
        if len(groups) > _MOST_LINES:
            out.print(f"and {len(groups) - _MOST_LINES:,} more {what}")
    for suspect in check.mislabelled[:_MOST_LINES]:
        image = suspect.image
        words = f"{image.name} ({image.split}): {image.label}, rather {suspect.suggested}"
        out.print(f"probably mislabelled: {escape(words)} (by {suspect.margin:.0%})")
    if page is not None:
        out.print(f"page: {escape(page)}")
