"""`neuscale bench`."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure this machine: the native ops.")


@app.command("ops")
def ops_command(
    device: Annotated[
        str, typer.Option("--device", help="cpu or cuda; auto takes the GPU where there is one.")
    ] = "auto",
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Rounds in which the sides take turns.")] = 9,
    only: Annotated[str, typer.Option("--only", help="Cases whose name contains this.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Measure the native ops beside eager torch, torch.compile and a copy of the same bytes."""
    import torch

    from neuscale.benchmark.ops import measure_ops, report, table_lines
    from neuscale.cli.console import print_json
    from neuscale.cli.progress import create_progress
    from neuscale.cluster.cores import available_cores
    from neuscale.errors import UsageError
    from neuscale.native_ops import native_ops
    from neuscale.training.device import check_compiler, resolve_device

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: expected auto, cpu or cuda.")
    kind = resolve_device(device)
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: there is no usable NVIDIA GPU here.", "'neuscale doctor' says why.")
    place = torch.device("cpu" if kind == "mps" else kind)
    ops, reason = native_ops(place)
    if ops is None:
        raise UsageError(f"there are no native ops to measure: {reason}.", "Build them: make ops")
    check_compiler()
    torch.set_num_threads(available_cores())
    progress = create_progress()
    measured = []
    for case in measure_ops(place, rounds, only):
        measured.append(case)
        progress.message(f"measured {case.case}")
    if not measured:
        raise UsageError(f"--only {only}: no case has this in its name.")
    if as_json:
        print_json(report(place, measured))
    else:
        typer.echo("\n".join(table_lines(measured)))
