"""`neuscale serve`."""

import math
from pathlib import Path
from typing import Annotated

import typer

from neuscale.cli.options import Checkpoint, Device, Weights, check_device_option, check_weights
from neuscale.errors import UsageError


def serve_command(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN|FOLDER", help="A run ('last' is the newest), or an exported folder."),
    ],
    checkpoint: Checkpoint = "best",
    weights: Weights = "auto",
    device: Device = "auto",
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0: for all who reach this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, help="0: any that is free.")] = 8000,
    max_batch: Annotated[
        int,
        typer.Option("--max-batch", min=1, help="Images that are classified at once."),
    ] = 32,
    max_megabytes: Annotated[
        float, typer.Option("--max-megabytes", min=0.001, help="Size of an image file at most.")
    ] = 20.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for a request, then it is given up.")
    ] = 30.0,
) -> None:
    """Answer requests with a trained model: a page to drop images on, and JSON.

    POST an image file to /predict, as the body or as a form's file; ?top=3 for three classes. /health is for
    those who watch the server. Requests that wait are classified together.
    """
    from neuscale.serving.packages import check_serving_packages

    check_weights(weights)
    check_device_option(device, "cpu", "cuda", "mps")
    check_serving_packages()
    for name, value in (("--max-megabytes", max_megabytes), ("--timeout", timeout)):
        if not math.isfinite(value):
            raise UsageError(f"{name} {value}: expected a finite number.")

    from neuscale.cli.console import err, escape, out
    from neuscale.cli.progress import create_progress
    from neuscale.contention import adaptive_waiting
    from neuscale.distributed.accelerator import check_device
    from neuscale.inference.restore import restore
    from neuscale.runs.differences import check_same_data
    from neuscale.runs.folder import find_run
    from neuscale.serving.model import is_exported, served_export, served_run
    from neuscale.serving.server import Limits, is_loopback, listen, serve

    if device != "auto":
        check_device(device)
    wanted = None if device == "auto" else device
    folder = Path(model).expanduser()
    if is_exported(folder):
        if (checkpoint, weights) != ("best", "auto"):
            raise UsageError(
                f"{folder}: an exported model has no checkpoints.", "Remove --checkpoint and --weights."
            )
        served = served_export(folder, wanted)
    else:
        run = find_run(model)
        restored = restore(run, checkpoint, weights, wanted, create_progress(), stage=False)
        check_same_data(restored.data, run)
        served = served_run(restored)
    limits = Limits(max_batch, int(max_megabytes * 1e6), timeout)
    with listen(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        if not is_loopback(listening):
            err.print(
                "[yellow]warning:[/] all who reach this machine can use the model; there is no password."
            )
        out.print(f"{escape(served.title)}, {len(served.classes)} classes, on {served.device}")
        out.print(f"{address} is the page; {address}/predict takes images. Ctrl-C ends it.")
        with adaptive_waiting(out.print, served.device):
            serve(served, limits, listening, host)
    out.print("stopped")
