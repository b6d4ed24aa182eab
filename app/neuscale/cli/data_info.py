"""`neuscale data info`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from neuscale.cli.options import AsJson, DataName

# Largest number of classes that are listed.
MOST_CLASSES = 40


def info_command(
    name: DataName,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also write a PNG with a row of images for each class.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a prepared data set: classes, counts, size, statistics, where it is from."""
    from neuscale.cli.console import escape, out, print_json
    from neuscale.data.datasets import open_prepared, sample_grid
    from neuscale.pictures import save_picture

    data = open_prepared(name)
    meta = data.meta
    counts = {split: data.class_counts(split) for split in meta.splits}
    if picture is not None:
        save_picture(sample_grid(data), picture)
    found = {
        "name": meta.name,
        "title": meta.title,
        "folder": str(data.folder),
        "bytes": sum(path.stat().st_size for path in data.folder.iterdir()),
        "images": meta.counts,
        "shape": [meta.channels, meta.height, meta.width],
        "mean": meta.mean,
        "std": meta.std,
        "classes": {label: {s: counts[s][i] for s in meta.splits} for i, label in enumerate(meta.classes)},
        "licence": meta.licence,
        "fingerprint": meta.fingerprint,
        "source": meta.source,
        "picture": str(picture) if picture is not None else None,
    }
    if as_json:
        print_json(found)
        return
    _show_info(found)
    if picture is None:
        out.print(f"A picture of it: neuscale data info {escape(name)} --picture {escape(name)}.png")
    else:
        out.print(f"The picture is {escape(picture)}")


def _show_info(found: dict[str, Any]) -> None:
    from rich.table import Table

    from neuscale.cli.console import escape, out
    from neuscale.units import quantity

    channels, height, width = found["shape"]
    statistics = zip(found["mean"], found["std"], strict=True)
    source = found["source"]
    made_from = f"{source['given']}{', the official file' if source['official'] else ''}"
    if source["kind"] == "published":
        made_from = f"the official files, from {source['given']}"
    rows = {
        "what it is": found["title"],
        "images": f"{found['images']['train']:,} training, {found['images']['val']:,} validation",
        "pixels": f"{height}×{width}, {'grayscale' if channels == 1 else 'colour'}",
        "mean ± deviation": "; ".join(f"{mean:.3f} ± {std:.3f}" for mean, std in statistics),
        "where": f"{found['folder']} ({quantity(found['bytes'], 'B')})",
        "made from": made_from,
        "licence": found["licence"],
        "fingerprint": found["fingerprint"][:16] + "…",
    }
    table = Table(title=escape(found["name"]), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in rows.items():
        table.add_row(label, escape(value))
    out.print(table)
    classes = Table(title=f"{len(found['classes'])} classes", title_justify="left")
    for column in ("class", "training", "validation"):
        classes.add_column(column, justify="left" if column == "class" else "right")
    shown = list(found["classes"].items())
    for label, counts in shown[:MOST_CLASSES]:
        classes.add_row(escape(label), f"{counts['train']:,}", f"{counts['val']:,}")
    if len(shown) > MOST_CLASSES:
        classes.add_row(f"… and {len(shown) - MOST_CLASSES} more (--json has all)", "", "")
    out.print(classes)
