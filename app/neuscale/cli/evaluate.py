"""`neuscale eval`."""

from pathlib import Path
from typing import Annotated

import typer

from neuscale.cli.options import (
    AsJson,
    Checkpoint,
    Gpus,
    Processes,
    RunName,
    Weights,
    check_weights,
    processes_device,
)
from neuscale.errors import UsageError


def eval_command(
    run: RunName,
    checkpoint: Checkpoint = "best",
    split: Annotated[
        str, typer.Option("--split", help="val, train, or test where the data has one.")
    ] = "val",
    weights: Weights = "auto",
    tta: Annotated[
        str, typer.Option("--tta", help="none, or flip: average over each image and its mirror image.")
    ] = "none",
    corruptions: Annotated[
        bool,
        typer.Option("--corruptions", help="Also evaluate on corrupted images: 10 kinds at 5 severities."),
    ] = False,
    latency: Annotated[
        str | None, typer.Option("--latency", help="Also time the model at these batch sizes: 1,8,64.")
    ] = None,
    reliability: Annotated[
        Path | None, typer.Option("--reliability", help="Also write a reliability diagram as a PNG.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only so many images, spread over the split.")
    ] = None,
    gpus: Gpus = None,
    processes: Processes = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model, over all images and per class."""
    from neuscale.runs.folder import find_run

    if split not in ("train", "val", "test"):
        raise UsageError(f"--split {split}: expected train, val or test.")
    if tta not in ("none", "flip"):
        raise UsageError(f"--tta {tta}: expected none or flip.")
    check_weights(weights)
    batch_sizes = _batch_sizes(latency)
    found = find_run(run)
    device = processes_device(gpus, processes)
    count = gpus or processes or 1
    if batch_sizes and count > 1:
        raise UsageError("--latency times one process.", "Remove --gpus and --processes.")

    from neuscale.distributed.launch import launch
    from neuscale.distributed.rank import started_by_launcher
    from neuscale.hardware import check_gpus

    if not started_by_launcher():
        if gpus:
            check_gpus(gpus)
        if count > 1:
            words = ["eval", str(found.path), "--checkpoint", checkpoint, "--split", split]
            words += ["--weights", weights, "--tta", tta, *(["--corruptions"] if corruptions else [])]
            words += ["--reliability", str(reliability)] if reliability is not None else []
            words += ["--limit", str(limit)] if limit is not None else []
            words += ["--gpus" if gpus else "--processes", str(count), *(["--json"] if as_json else [])]
            raise typer.Exit(launch(words, count))

    from neuscale.cli.evaluation_report import print_evaluation, show_evaluation
    from neuscale.cli.progress import create_progress
    from neuscale.evaluation.calibration import save_reliability_diagram
    from neuscale.evaluation.evaluate import Evaluation
    from neuscale.inference.evaluate_run import Extras, evaluate_run

    extras = Extras(tta == "flip", limit, corruptions, batch_sizes, reliability is not None)
    evaluated = evaluate_run(found, checkpoint, split, device, create_progress(), weights, extras)
    if not evaluated.is_main:
        return
    if reliability is not None:
        assert isinstance(evaluated.evaluation, Evaluation)
        save_reliability_diagram(evaluated.evaluation.calibration, f"{found.name}, {split}", reliability)
    if as_json:
        print_evaluation(found.name, evaluated, split, tta)
    else:
        show_evaluation(found.name, evaluated, split, tta, reliability)


def _batch_sizes(text: str | None) -> tuple[int, ...]:
    """Parse the batch sizes of `--latency`. Raises UsageError."""
    if text is None:
        return ()
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise UsageError(f"--latency {text}: expected batch sizes such as 1,8,64.")
    return sizes
