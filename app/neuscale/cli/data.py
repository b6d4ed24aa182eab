"""`neuscale data`."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Data sets: what there is, fetching and packing, checking.")

Name = Annotated[str, typer.Argument(help="A data set, as 'neuscale data list' shows them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """Show the data sets that can be had and those that are prepared."""
    from rich.table import Table

    from neuscale.cli.console import escape, out, print_json
    from neuscale.data.catalog import CATALOG
    from neuscale.data.packed import PackedDataset, packed_path
    from neuscale.data.prepare import prepared_names
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
        if packed_path(name).is_dir():
            try:
                meta = PackedDataset.open(packed_path(name)).meta
                row |= {
                    "title": meta.title,
                    "classes": len(meta.classes),
                    "size": f"{meta.height}×{meta.width}",
                }
                row |= {"state": "prepared", "images": meta.counts}
            except DataError:
                row["state"] = "damaged"
        rows.append(row)
    if as_json:
        print_json({"folder": str(data_root()), "datasets": rows})
        return
    table = Table(title=f"data sets in {escape(data_root())}", title_justify="left")
    for column in ("name", "what it is", "classes", "pixels", "state"):
        table.add_column(column)
    for row in rows:
        counts = row["images"]
        state = str(row["state"])
        if isinstance(counts, dict):
            state += f": {counts['train']:,} + {counts['val']:,} images"
        shown = [row["classes"] or "yours", row["size"] or "yours"]
        table.add_row(str(row["name"]), escape(row["title"]), *map(str, shown), state)
    out.print(table)


@app.command("prepare")
def prepare_command(
    name: Name,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="A file or folder to make it from, instead of fetching it."),
    ] = None,
    size: Annotated[int | None, typer.Option("--size", help="Side in pixels to make image files.")] = None,
    save_as: Annotated[str | None, typer.Option("--save-as", help="Another name to keep it under.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Make it again; the older one is replaced last.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a data set and pack it, so that training can begin.

    Your own images: neuscale data prepare image_folder --source FOLDER --save-as pets
    """
    from neuscale.cli.console import escape, out, print_json
    from neuscale.cli.progress import create_progress
    from neuscale.data.prepare import prepare

    data = prepare(name, source=source, size=size, save_as=save_as, force=force, progress=create_progress())
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
            }
        )
        return
    out.print(
        f"[bold]{escape(meta.name)}[/] is ready: {meta.counts['train']:,} training and {meta.counts['val']:,}"
        f" validation images of {meta.height}×{meta.width} in {len(meta.classes)} classes,"
        f" in {escape(data.folder)}"
    )


@app.command("verify")
def verify_command(name: Name, as_json: AsJson = False) -> None:
    """Read a prepared data set again, whole, and compare it with its checksums."""
    from neuscale.cli.console import escape, out, print_json, show_error
    from neuscale.cli.progress import create_progress
    from neuscale.data.packed import PackedDataset, packed_path, prepare_command

    data = PackedDataset.open(packed_path(name))
    damaged = data.verify(create_progress())
    if as_json:
        print_json({"name": name, "folder": str(data.folder), "intact": not damaged, "damaged": damaged})
    elif damaged:
        for file in damaged:
            show_error(f"{data.folder / file}: differs from its checksum.", "")
        show_error(f"{name} is damaged.", f"Make it again: {prepare_command(name, force=True)}")
    else:
        out.print(f"{escape(name)} is intact: {len(data.meta.checksums)} files in {escape(data.folder)}")
    raise typer.Exit(1 if damaged else 0)
