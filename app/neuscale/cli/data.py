"""`neuscale data`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from neuscale.cli.data_check import check_command
from neuscale.cli.data_info import info_command
from neuscale.cli.options import AsJson, DataName
from neuscale.cli.source_options import (
    Encoding,
    Fit,
    Fold,
    Folds,
    ImageColumn,
    LabelColumn,
    LabelColumns,
    Labels,
    LabelSeparator,
    MultiLabel,
    Nested,
    Size,
    SplitColumn,
    SplitSeed,
    ValShare,
    ValueRange,
    value_range_of,
)
from neuscale.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="List, download, prepare and check data sets.")


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """Show the data sets that can be had and those that are prepared."""
    from rich.table import Table

    from neuscale.cli.console import escape, out, print_json
    from neuscale.data.catalog import CATALOG
    from neuscale.data.datasets import is_prepared, open_prepared, prepared_names
    from neuscale.data.formats.image_list import ListedDataset
    from neuscale.errors import DataError
    from neuscale.paths import data_root

    rows = []
    for name in [*CATALOG, *(n for n in prepared_names() if n not in CATALOG)]:
        entry = CATALOG.get(name)
        row: dict[str, Any] = {
            "name": name,
            "title": entry.title if entry else name,
            "classes": entry.num_classes if entry else None,
            "size": f"{entry.native_size}×{entry.native_size}" if entry and entry.native_size else None,
            "state": "not prepared",
            "images": None,
        }
        if is_prepared(name):
            try:
                data = open_prepared(name)
                meta = data.meta
                row |= {
                    "title": meta.title,
                    "classes": len(meta.classes),
                    "size": f"{meta.height}×{meta.width}",
                }
                state = "listed" if isinstance(data, ListedDataset) else "prepared"
                row |= {"state": state, "images": meta.counts}
            except DataError:
                row["state"] = "damaged"
        rows.append(row)
    if as_json:
        print_json({"folder": str(data_root()), "datasets": rows})
        return
    table = Table(title=f"data sets in {escape(data_root())}", title_justify="left")
    table.add_column("name", no_wrap=True)  # users type it
    for column in ("what it is", "classes", "pixels", "state"):
        table.add_column(column, overflow="fold")
    for row in rows:
        counts = row["images"]
        state = str(row["state"])
        if isinstance(counts, dict):
            state += f": {counts['train']:,} + {counts['val']:,} images"
        elif row["state"] == "damaged":
            state += f": run 'neuscale data verify {row['name']}'"
        shown = [row["classes"] or "yours", row["size"] or "yours"]
        table.add_row(escape(row["name"]), escape(row["title"]), *map(str, shown), state)
    out.print(table)


@app.command("prepare")
def prepare_command(
    name: Annotated[
        str,
        typer.Argument(help="A data set, as 'neuscale data list' shows them, or hf:OWNER/NAME of the Hub."),
    ],
    source: Annotated[
        Path | None,
        typer.Option("--source", help="File or folder to prepare the data set from, instead of a download."),
    ] = None,
    size: Size = None,
    save_as: Annotated[str | None, typer.Option("--save-as", help="Name to save the data set under.")] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="packed; files: images stay where they are and are decoded during training;"
            " folder: a tree of image files for torchvision's ImageFolder.",
        ),
    ] = "packed",
    force: Annotated[
        bool,
        typer.Option("--force", help="Prepare again; the old one stays until the new one is complete."),
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be read, and list them.")
    ] = False,
    fit: Fit = None,
    val_share: ValShare = None,
    folds: Folds = None,
    fold: Fold = None,
    split_seed: SplitSeed = None,
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
    """Fetch a data set and pack it, so that training can begin.

    Your own images: neuscale data prepare image_folder --source FOLDER --save-as pets
    """
    from neuscale.cli.console import escape, out, print_json
    from neuscale.cli.progress import create_progress
    from neuscale.data.formats.write_image_list import list_images
    from neuscale.data.formats.write_image_tree import write_image_tree
    from neuscale.data.prepare import prepare
    from neuscale.data.sources.options import SourceOptions

    if layout not in ("packed", "files", "folder"):
        raise UsageError(f"--layout {layout}: expected packed, files or folder.")
    options = SourceOptions(
        size,
        fit,
        value_range_of(value_range),
        encoding,
        nested,
        val_share,
        folds,
        fold,
        split_seed,
        labels,
        image_column,
        label_column,
        split_column,
        multi_label,
        label_separator,
        label_columns,
    )
    if layout == "folder":
        if size is not None or skip_bad or value_range is not None:
            option = "--size" if size is not None else "--skip-bad" if skip_bad else "--value-range"
            raise UsageError(
                f"{option} and --layout folder do not go together.", "Files are kept as they are."
            )
        folder = write_image_tree(
            name, source=source, options=options, save_as=save_as, force=force, progress=create_progress()
        )
        if as_json:
            print_json({"name": folder.name, "folder": str(folder)})
        else:
            out.print(f"[bold]{escape(folder.name)}[/] is a tree of image files in {escape(folder)}")
        return
    make = list_images if layout == "files" else prepare
    data = make(
        name,
        source=source,
        options=options,
        save_as=save_as,
        force=force,
        skip_bad=skip_bad,
        progress=create_progress(),
    )
    meta = data.meta
    if as_json:
        print_json(
            {
                "name": meta.name,
                "folder": str(data.folder),
                "fingerprint": meta.fingerprint,
                "classes": meta.classes,
                "counts": meta.counts,
                "shape": [meta.channels, meta.height, meta.width],
                "left_out": meta.source.get("left_out", []),
            }
        )
        return
    number = len(meta.classes)
    test = f" ({meta.counts['test']:,} more to test)" if "test" in meta.counts else ""
    out.print(
        f"[bold]{escape(meta.name)}[/] is ready: {meta.counts['train']:,} training and {meta.counts['val']:,}"
        f" validation images{test} of {meta.height}×{meta.width} in {number} class{'es' * (number != 1)},"
        f" {'listed ' if layout == 'files' else ''}in {escape(data.folder)}"
    )


@app.command("verify")
def verify_command(name: DataName, as_json: AsJson = False) -> None:
    """Read a prepared data set again, whole, and compare it with its checksums."""
    from neuscale.cli.console import escape, out, print_json, show_error
    from neuscale.cli.progress import create_progress
    from neuscale.data.datasets import open_prepared, remedy

    data = open_prepared(name)
    damaged = data.verify(create_progress())
    if as_json:
        print_json({"name": name, "folder": str(data.folder), "intact": not damaged, "damaged": damaged})
    elif damaged:
        for file in damaged:
            show_error(f"{data.files_folder / file}: differs from its checksum.", "")
        show_error(f"{name} is damaged.", f"Make it again: {remedy(data)}")
    else:
        out.print(f"{escape(name)} is intact: all is as recorded in {escape(data.folder)}")
    raise typer.Exit(1 if damaged else 0)


app.command("info")(info_command)
app.command("check")(check_command)


@app.command("stage")
def stage_command(
    name: DataName,
    to: Annotated[
        Path | None, typer.Option("--to", help="A folder on the disk to copy to; without it, $TMPDIR.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a prepared data set to the node's own disk, for slow or shared storage.

    Training from there: neuscale train data.stage=FOLDER; in a batch job it does so by itself.
    """
    from neuscale.cli.console import escape, out, print_json
    from neuscale.cli.progress import create_progress
    from neuscale.data.datasets import open_prepared
    from neuscale.data.formats.image_list import ListedDataset
    from neuscale.data.staging import stage

    prepared = open_prepared(name)
    if isinstance(prepared, ListedDataset):
        raise UsageError(
            f"{name} is kept as image files, and what is staged are packed arrays.",
            "Pack it, which suits slow storage: prepare it without --layout files.",
        )
    data = stage(prepared, to, create_progress())
    if as_json:
        print_json({"name": name, "folder": str(data.folder), "fingerprint": data.meta.fingerprint})
    else:
        out.print(f"{escape(name)} is in {escape(data.folder)}")
