"""`neuscale bench`."""

from typing import Annotated

import typer

from neuscale.cli.options import AsJson, Device, check_device_option

app = typer.Typer(no_args_is_help=True, help="Measure this machine: the native ops, a training step.")


@app.command("ops")
def ops_command(
    device: Annotated[
        str, typer.Option("--device", help="cpu or cuda; auto takes the GPU where there is one.")
    ] = "auto",
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Rounds in which the sides take turns.")] = 9,
    only: Annotated[str, typer.Option("--only", help="Cases whose name contains this.")] = "",
    as_json: AsJson = False,
) -> None:
    """Measure the native ops beside eager torch, torch.compile and a copy of the same bytes."""
    import torch

    from neuscale.benchmark.ops import measure_ops, report, table_lines
    from neuscale.cli.console import print_json
    from neuscale.cli.progress import create_progress
    from neuscale.distributed.accelerator import check_device, resolve_device
    from neuscale.errors import UsageError
    from neuscale.hardware import available_cores, check_compiler
    from neuscale.native_ops import native_ops

    check_device_option(device, "cpu", "cuda")
    check_device(device)
    kind = resolve_device(device)
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


@app.command("step")
def step_command(
    device: Device = "auto",
    precision: Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16.")] = "bf16",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images in a step.")] = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds in which the sides take turns.")] = 5,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure the compiled forms as well.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Measure a training step of Swin-T and ViT-S/4 beside torchvision's models."""
    from dataclasses import asdict

    import torch

    from neuscale.benchmark.step import measure_steps
    from neuscale.cli.console import out, print_json
    from neuscale.cli.progress import create_progress
    from neuscale.distributed.accelerator import check_device, resolve_device, resolve_precision
    from neuscale.errors import UsageError
    from neuscale.hardware import available_cores, check_compiler

    check_device_option(device, "cpu", "cuda", "mps")
    if precision not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"--precision {precision}: expected fp32, bf16 or fp16.")
    check_device(device)
    kind = resolve_device(device)
    resolve_precision(precision, kind)
    if compiled:
        check_compiler()
    torch.set_num_threads(available_cores())
    progress = create_progress()
    rows = []
    for row in measure_steps(torch.device(kind), precision, batch, rounds, compiled):
        rows.append(row)
        progress.message(f"{row.model}: {row.side} {row.images_per_second:,.0f} img/s")
    if as_json:
        print_json({"device": kind, "torch": torch.__version__, "rows": [asdict(row) for row in rows]})
        return
    from rich.table import Table

    table = Table(title=f"a step of {batch} images, {precision}, on {kind}", title_justify="left")
    for column in ("model", "side", "ms", "img/s", "ratio", "TFLOP/s", "MFU"):
        table.add_column(column, justify="left" if column in ("model", "side") else "right")
    for row in rows:
        tflops = f"{row.tflops:.2f}" if row.tflops is not None else ""
        mfu = f"{row.mfu:.1%}" if row.mfu is not None else ""
        table.add_row(
            row.model,
            row.side,
            f"{row.milliseconds:,.0f}",
            f"{row.images_per_second:,.0f}",
            f"{row.ratio:.2f}×",
            tflops,
            mfu,
        )
    out.print(table)
