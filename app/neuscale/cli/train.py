"""`neuscale train`."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuscale.cli.options import AsJson, Gpus, Processes, processes_device
from neuscale.errors import EXIT_RESUME, UsageError

if TYPE_CHECKING:
    from neuscale.config import Config
    from neuscale.evaluation.evaluate import AnyEvaluation
    from neuscale.runs.folder import RunFolder
    from neuscale.training.outcome import Outcome
    from neuscale.training.run import TrainedRun


def train_command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=VALUE",
            help="Configuration overrides: experiment=cifar10_swin_t, optim.lr=1e-3, …;"
            " with --resume also the name or path of a RUN.",
            show_default=False,
        ),
    ] = None,
    gpus: Gpus = None,
    processes: Processes = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume RUN, or run.name, or the newest unfinished run; else start."),
    ] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            help="With --resume RUN: the checkpoint (best, or its step); later ones are set aside.",
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="Configuration file to use, as --print-config prints it."),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the composed configuration and stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model; without overrides, the recipe experiment=quickstart.

    The data is prepared first if it is not there. Stop it with Ctrl-C: it saves, and
    'neuscale train --resume' goes on.
    """
    from neuscale.cli.overrides import configure
    from neuscale.cli.progress import create_progress
    from neuscale.config import preset_overrides
    from neuscale.distributed.launch import launch
    from neuscale.distributed.nodes import NO_SECRET, srun_nodes
    from neuscale.distributed.rank import started_by_launcher
    from neuscale.distributed.signals import hold_save_signal
    from neuscale.hardware import check_gpus

    hold_save_signal()  # until its handler is installed
    config, run = configure(overrides or [], resume, config_file)
    if checkpoint is not None and run is None:
        raise UsageError("--checkpoint is one of a run that goes on.", "Use it with --resume RUN.")
    device = processes_device(gpus, processes)
    if device is not None:
        if f"run.device={config.run.device}" in (overrides or []) and config.run.device not in (
            "auto",
            device,
        ):
            option = "--processes" if gpus is None else f"--gpus {gpus}"
            raise UsageError(
                f"{option} and run.device={config.run.device} contradict each other.",
                "Use only one of the two.",
            )
        config.run.device = device
    if print_config:
        device_option = f"--gpus {gpus}" if gpus is not None else f"--processes {processes}"
        _print_config(config, run, overrides or [], device_option if device is not None else None)
        return
    if gpus and not started_by_launcher():
        check_gpus(gpus)
    if checkpoint is not None and run is not None and not started_by_launcher() and srun_nodes().index == 0:
        _go_back(run, checkpoint)
    count = gpus or processes or 1
    if not started_by_launcher() and count * (nodes := srun_nodes()).count > 1:
        if nodes.count > 1 and nodes.index == 0 and not nodes.secret:
            create_progress().warning(NO_SECRET)
        _prepare(config, run, count * nodes.count)
        again = [word for word in overrides or [] if "=" in word]
        if run is not None:
            presets = preset_overrides(again)
            again = [str(run.path), "--resume", *[word for word in again if word not in presets]]
        again += [f"run.device={config.run.device}", *(["--json"] if as_json else [])]
        again += ["--config", str(config_file)] if config_file is not None and run is None else []
        raise typer.Exit(launch(["train", *again], count, nodes))
    raise typer.Exit(_train(config, run, as_json))


def _print_config(
    config: "Config", run: "RunFolder | None", overrides: list[str], device_option: str | None
) -> None:
    """Print the configuration with the source of each value."""
    from neuscale.config.compose import annotated_yaml, split_overrides
    from neuscale.config.preset_files import COMMAND_LINE, DEFAULT, field_sources

    presets, fields = split_overrides([word for word in overrides if "=" in word])
    if run is None:
        sources = field_sources(presets, fields)
    else:  # a resumed run does not keep its device
        sources = {"run.device": DEFAULT} | dict.fromkeys(fields, COMMAND_LINE)
    if device_option is not None:
        sources["run.device"] = device_option
    rest = DEFAULT if run is None else f"run {run.name}"
    typer.echo(annotated_yaml(config, sources, rest), nl=False)


def _go_back(run: "RunFolder", name: str) -> None:
    """Set aside the checkpoints after `name`, and print the folder that they are moved to."""
    from neuscale.cli.progress import create_progress
    from neuscale.training.checkpoint import CheckpointFolder

    with run.held():
        chosen, aside = CheckpointFolder(run.checkpoints).go_back_to(name)
    if aside is not None:
        create_progress().message(f"going back to step {chosen.step:,}; later checkpoints are in {aside}")


def _prepare(config: "Config", run: "RunFolder | None", world_size: int) -> None:
    """Check the configuration and prepare the data before the worker processes start."""
    from neuscale.cli.progress import create_progress
    from neuscale.data.open import open_data
    from neuscale.runs.own_code import use_code
    from neuscale.training.validate import validate

    if run is not None:
        use_code(run, resume=True)
    validate(config, world_size)
    open_data(config, create_progress())


def _train(config: "Config", run: "RunFolder | None", as_json: bool) -> int:
    import torch

    from neuscale.cli.progress import create_progress
    from neuscale.distributed.accelerator import resolve_device
    from neuscale.hardware import available_cores, keep_freed_memory
    from neuscale.training.run import train

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    if resolve_device(config.run.device) == "cpu":
        keep_freed_memory()
    trained = train(config, run, create_progress(), _report)
    if trained.is_main:
        _show_result(trained, config, as_json)
    return EXIT_RESUME if trained.outcome.stopped_by else 0


def _report(run: "RunFolder") -> Path:
    """Write the page of `neuscale runs report`, for trackers that store files."""
    from neuscale.analysis.report import write_report
    from neuscale.progress import Silent

    write_report(run, run.path / "report.html", None, Silent())
    return run.path / "report.html"


def _show_result(trained: "TrainedRun", config: "Config", as_json: bool) -> None:
    from neuscale.cli.console import beside, err, escape, print_json
    from neuscale.runs.manifest import read_manifest

    run, outcome = trained.run, trained.outcome
    manifest = read_manifest(run.manifest_file)
    if as_json:
        print_json({"run": str(run.path), "status": manifest.get("status"), **manifest.get("result", {})})
    if outcome.stopped_by:
        err.print(f"stopped by {outcome.stopped_by} after step {outcome.steps:,}; everything is saved.")
        err.print(f"Resume with: [bold]{escape(_resume_command(run, config))}[/]")
    if as_json or outcome.stopped_by:
        return
    if outcome.last is not None:
        _show_table(run.name, outcome, outcome.last)
    err.print(f"Everything is in {escape(run.path)}. Where to look next:")
    folder = shlex.quote(str(run.path.parent))
    commands = {
        f"{beside('neuscale')} eval {run.argument}": "accuracy per class",
        f"{beside('tensorboard')} --logdir {folder}": "curves, images, confusion matrix",
        f"{beside('neuscale')} runs report {run.argument}": "all of it as one HTML page",
    }
    width = max(map(len, commands))
    for command, what in commands.items():
        err.print(f"  [bold]{escape(command.ljust(width))}[/]  {what}")


def _show_table(name: str, outcome: "Outcome", last: "AnyEvaluation") -> None:
    from rich.table import Table

    from neuscale.cli.console import escape, out
    from neuscale.evaluation.evaluate import Evaluation
    from neuscale.units import duration

    table = Table(title=escape(name), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    heading, value = last.headline
    table.add_row(heading, f"{value:.2%}")
    if isinstance(last, Evaluation) and len(last.confusion) > 5:
        table.add_row("top-5", f"{last.top5:.2%}")
    table.add_row("loss", f"{last.loss:.4f}")
    if outcome.best_top1 >= 0:
        table.add_row("best top-1", f"{outcome.best_top1:.2%}")
    metric, best = outcome.best_metric, outcome.best_value
    if metric != "top1" and best is not None:
        words = f"{best:.4f}" if metric == "loss" else f"{best:.2%}"
        table.add_row(f"best {'mAP' if metric == 'map' else metric}", words)
    table.add_row("images evaluated", f"{last.samples:,}")
    table.add_row("training time", duration(outcome.seconds))
    table.add_row("throughput", f"{outcome.images_per_second:,.0f} img/s")
    out.print(table)


def _resume_command(run: "RunFolder", config: "Config") -> str:
    from neuscale.cli.console import beside

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    option = "--processes" if config.run.device == "cpu" else "--gpus"
    return f"{beside('neuscale')} train --resume {run.argument}" + (
        f" {option} {processes}" if processes > 1 else ""
    )
