"""CLI arguments and options shared by several commands."""

from typing import Annotated

import typer

from neuscale.errors import UsageError

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name or path of a run; 'last' is the newest.")]
DataName = Annotated[str, typer.Argument(help="A data set, as 'neuscale data list' shows them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", help="best, last, or a checkpoint's name or path.")]
Weights = Annotated[
    str, typer.Option("--weights", help="raw, ema (their average), or auto: ema where there is one.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or mps; auto takes what there is.")]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        help="CPU processes to train in, with gloo between them; under srun, on each node.",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=0,
        help="GPUs to train on, a process each; 0 is the CPU; without it, one if there is one;"
        " under srun, on each node.",
    ),
]


def check_weights(weights: str) -> None:
    """Raise UsageError for an unknown value of `--weights`."""
    if weights not in ("auto", "raw", "ema"):
        raise UsageError(f"--weights {weights}: expected auto, raw or ema.")


def check_device_option(device: str, *allowed: str) -> None:
    """Raise UsageError unless `--device` is auto or one of `allowed`."""
    if device not in ("auto", *allowed):
        *first, last = ("auto", *allowed)
        raise UsageError(f"--device {device}: expected {', '.join(first)} or {last}.")


def processes_device(gpus: int | None, processes: int | None) -> str | None:
    """Value of `run.device` implied by `--gpus` and `--processes`; None if neither is given."""
    if gpus and processes and gpus != processes:
        raise UsageError(
            "--gpus and --processes contradict each other.", "Use --gpus for GPUs, --processes for the CPU."
        )
    if gpus:
        return "cuda"
    return "cpu" if gpus == 0 or processes else None
