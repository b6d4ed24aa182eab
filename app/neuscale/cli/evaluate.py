"""`neuscale eval`."""

from typing import TYPE_CHECKING, Annotated

import typer

from neuscale.cli.train import Gpus, Processes, processes_device
from neuscale.errors import UsageError

if TYPE_CHECKING:
    from neuscale.evaluation.run import EvaluatedRun


Run = Annotated[str, typer.Argument(help="Name or path of a run; 'last' is the newest.")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", help="best, last, or a checkpoint's name or path.")]
Weights = Annotated[
    str, typer.Option("--weights", help="raw, ema (their average), or auto: ema where there is one.")
]


def check_weights(weights: str) -> None:
    """UsageError for a `--weights` that is none."""
    if weights not in ("auto", "raw", "ema"):
        raise UsageError(f"--weights {weights}: expected auto, raw or ema.")


def eval_command(
    run: Run,
    checkpoint: Checkpoint = "best",
    split: Annotated[str, typer.Option("--split", help="val or train.")] = "val",
    weights: Weights = "auto",
    gpus: Gpus = None,
    processes: Processes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Evaluate a trained model, over all images and per class."""
    from neuscale.cli.progress import create_progress
    from neuscale.cluster.launch import check_gpus, launch, started_by_launcher
    from neuscale.runs.folder import find_run

    if split not in ("train", "val"):
        raise UsageError(f"--split {split}: expected train or val.")
    check_weights(weights)
    found = find_run(run)
    device = processes_device(gpus, processes)
    count = gpus or processes or 1
    if not started_by_launcher():
        if gpus:
            check_gpus(gpus)
        if count > 1:
            words = [
                "eval",
                str(found.path),
                "--checkpoint",
                checkpoint,
                "--split",
                split,
                "--weights",
                weights,
            ]
            words += ["--gpus" if gpus else "--processes", str(count), *(["--json"] if as_json else [])]
            raise typer.Exit(launch(words, count))
    from neuscale.evaluation.run import evaluate_run

    evaluated = evaluate_run(found, checkpoint, split, device, create_progress(), weights)
    if evaluated.is_main:
        _show(found.name, evaluated, split, as_json)


def _show(name: str, evaluated: "EvaluatedRun", split: str, as_json: bool) -> None:
    from rich.table import Table

    from neuscale.cli.console import escape, out, print_json

    result, classes = evaluated.evaluation, evaluated.classes
    accuracy = result.per_class()
    if as_json:
        print_json(
            {
                "run": name,
                "checkpoint": evaluated.checkpoint,
                "step": evaluated.step,
                "split": split,
                "samples": result.samples,
                **result.scalars(),
                "per_class": dict(zip(classes, accuracy, strict=True)),
            }
        )
        return
    table = Table(title=f"{escape(name)}: {split}, {escape(evaluated.checkpoint)}", title_justify="left")
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("most often taken for")
    counts = result.confusion.sum(1).tolist()
    for i in sorted(range(len(classes)), key=lambda i: (accuracy[i] is None, accuracy[i] or 0.0)):
        wrong = result.confusion[i].clone()
        wrong[i] = 0
        other = int(wrong.argmax())
        taken_for = f"{escape(classes[other])} ({int(wrong[other])})" if int(wrong[other]) else ""
        share = accuracy[i]
        table.add_row(
            escape(classes[i]), f"{counts[i]:,}", "no images" if share is None else f"{share:.1%}", taken_for
        )
    out.print(table)
    top5 = f"   top-5 {result.top5:.2%}" if len(classes) > 5 else ""
    out.print(
        f"top-1 [bold]{result.top1:.2%}[/]{top5}   loss {result.loss:.4f}   on {result.samples:,} images"
    )
