"""`neuscale predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuscale.cli.options import (
    AsJson,
    Checkpoint,
    Device,
    RunName,
    Weights,
    check_device_option,
    check_weights,
)
from neuscale.errors import EXIT_FAILED, UsageError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from neuscale.inference.predict import Prediction, Unreadable
    from neuscale.inference.restore import Restored

Row = tuple[str, list[tuple[str, float]]]


def predict_command(
    run: RunName,
    images: Annotated[list[Path], typer.Argument(help="Image files, and folders of them to any depth.")],
    checkpoint: Checkpoint = "best",
    weights: Weights = "auto",
    top: Annotated[int, typer.Option("--top", min=1, help="Number of classes to show for each image.")] = 3,
    device: Device = "auto",
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="Write a line for each image to this file (-: standard output), and no table. A name that"
            " begins with =, +, - or @, a formula to spreadsheets, gets an apostrophe before it.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Also write a PNG of the images (the first 100) with their classes."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Classify images with a trained model: the likeliest classes and their probabilities.

    Where an image may have several labels, those with a probability of 50% or more.

    A file that is not an image is reported, and the others are predicted; the exit code is then 1.
    """
    from neuscale.runs.folder import find_run

    check_weights(weights)
    check_device_option(device, "cpu", "cuda", "mps")
    if csv_file is not None and as_json:
        raise UsageError("--csv and --json contradict each other.", "Use only one of the two.")
    found = find_run(run)

    from neuscale.cli.console import escape, out, show_error
    from neuscale.cli.progress import create_progress
    from neuscale.contention import adaptive_waiting
    from neuscale.distributed.accelerator import check_device
    from neuscale.inference.predict import (
        MOST_SHOWN,
        Unreadable,
        find_images,
        is_stream,
        predict,
        prediction_grid,
        write_csv,
    )
    from neuscale.inference.restore import restore
    from neuscale.pictures import save_picture
    from neuscale.runs.differences import check_same_data

    if device != "auto":
        check_device(device)
    files = find_images(images)
    progress = create_progress()
    restored = restore(
        found, checkpoint, weights, None if device == "auto" else device, progress, stage=False
    )
    check_same_data(restored.data, found)
    shown: list[Prediction] = []
    failed: list[Unreadable] = []

    waiting = adaptive_waiting(progress.message, restored.device.type)

    def predictions() -> "Iterator[Prediction]":
        with waiting, progress.task("predicting", len(files), "img") as task:
            for answer in predict(restored, files, top, task):
                if isinstance(answer, Unreadable):
                    failed.append(answer)
                    show_error(f"{answer.file}: {answer.reason}.", "")
                    continue
                if picture is not None and len(shown) < MOST_SHOWN:
                    shown.append(answer)
                yield answer
        if len(failed) == len(files):
            raise UserError("there is no image to predict.", "Give image files, or folders of them.")

    rows: list[Row] = []
    if csv_file is not None:
        classes = restored.data.meta.classes
        count = write_csv(
            csv_file, predictions(), min(top, len(classes)), classes if restored.several_labels else None
        )
    else:
        rows = [(str(answer.file), answer.top) for answer in predictions()]
        count = len(rows)
    if picture is not None:
        save_picture(prediction_grid(shown), picture)
    if as_json:
        _print_json(restored, rows, failed, picture)
    else:
        if csv_file is None:
            _show_several(restored, rows, top) if restored.several_labels else _show_table(restored, rows)
        elif not is_stream(csv_file):
            out.print(f"{count:,} image{'s' if count > 1 else ''} predicted, in {escape(csv_file)}")
        if picture is not None:
            out.print(f"The picture is {escape(picture)}")
    raise typer.Exit(EXIT_FAILED if failed else 0)


def _print_json(
    restored: "Restored", rows: list[Row], failed: "list[Unreadable]", picture: Path | None
) -> None:
    from neuscale.cli.console import print_json

    print_json(
        {
            "run": restored.run.name,
            "checkpoint": str(restored.checkpoint),
            "step": restored.step,
            "weights": restored.weights,
            "images": [
                {"file": file, "predictions": [{"class": name, "probability": share} for name, share in top]}
                for file, top in rows
            ],
            "failed": [{"file": str(answer.file), "reason": answer.reason} for answer in failed],
            "picture": str(picture) if picture is not None else None,
        }
    )


def _show_table(restored: "Restored", rows: list[Row]) -> None:
    from neuscale.cli.console import escape, out

    table = _table(restored, "image", "class", "probability", "then")
    table.columns[2].justify = "right"
    for file, [(name, share), *others] in rows:
        then = ", ".join(f"{other} {less:.1%}" for other, less in others)
        table.add_row(escape(file), escape(name), f"{share:.1%}", escape(then))
    out.print(table)


def _show_several(restored: "Restored", rows: list[Row], top: int) -> None:
    """Print all predicted labels of each image, and the `top` most likely of the others."""
    from neuscale.cli.console import escape, out
    from neuscale.evaluation.multi_label import THRESHOLD

    table = _table(restored, "image", "labels", "less likely")
    for file, answers in rows:
        words = [f"{name} {share:.1%}" for name, share in answers]
        count = sum(share >= THRESHOLD for _, share in answers)
        labels, others = ", ".join(words[:count]) or "(none)", ", ".join(words[count : count + top])
        table.add_row(escape(file), escape(labels), escape(others))
    out.print(table)


def _table(restored: "Restored", *columns: str) -> "Table":
    from rich.table import Table

    from neuscale.cli.console import escape

    title = f"{escape(restored.run.name)}, {escape(restored.checkpoint.name)}"
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
