"""`neuscale train`."""

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from neuscale.errors import EXIT_RESUME, UsageError

if TYPE_CHECKING:
    from neuscale.config import Config
    from neuscale.evaluation.evaluate import Evaluation
    from neuscale.runs.folder import RunFolder
    from neuscale.training.outcome import Outcome
    from neuscale.training.train import TrainedRun

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


def train_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=VALUE",
            help="What to change in the configuration: experiment=cifar10_swin_t, optim.lr=1e-3, …;"
            " with --resume also the name or path of a RUN.",
            show_default=False,
        ),
    ] = None,
    gpus: Gpus = None,
    processes: Processes = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with RUN, or run.name, or the newest run that did not finish; else start."
        ),
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the composed configuration and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a model; without words, the recipe experiment=quickstart.

    The data is prepared first if it is not there. Stop it with Ctrl-C: it saves, and
    'neuscale train --resume' goes on.
    """
    from neuscale.cli.train_words import configure
    from neuscale.cluster.launch import check_gpus, launch, started_by_launcher
    from neuscale.cluster.nodes import srun_nodes
    from neuscale.cluster.save_signal import hold_save_signal
    from neuscale.config import preset_words

    hold_save_signal()  # until it can be obeyed
    config, run = configure(words or [], resume)
    device = processes_device(gpus, processes)
    if device is not None:
        if f"run.device={config.run.device}" in (words or []) and config.run.device not in ("auto", device):
            option = "--processes" if gpus is None else f"--gpus {gpus}"
            raise UsageError(
                f"{option} and run.device={config.run.device} contradict each other.",
                "Leave one of them away.",
            )
        config.run.device = device
    if print_config:
        from neuscale.config import config_to_yaml

        typer.echo(config_to_yaml(config), nl=False)
        return
    if gpus and not started_by_launcher():
        check_gpus(gpus)
    count = gpus or processes or 1
    if not started_by_launcher() and count * (nodes := srun_nodes()).count > 1:
        _prepare(config, count * nodes.count)
        again = [word for word in words or [] if "=" in word]
        if run is not None:
            again = [str(run.path), "--resume", *[word for word in again if word not in preset_words(again)]]
        again += [f"run.device={config.run.device}", *(["--json"] if as_json else [])]
        raise typer.Exit(launch(["train", *again], count, nodes))
    raise typer.Exit(_train(config, run, as_json))


def processes_device(gpus: int | None, processes: int | None) -> str | None:
    """What `--gpus` and `--processes` say about `run.device`; None where they say nothing."""
    if gpus and processes and gpus != processes:
        raise UsageError(
            "--gpus and --processes contradict each other.", "Use --gpus for GPUs, --processes for the CPU."
        )
    if gpus:
        return "cuda"
    return "cpu" if gpus == 0 or processes else None


def _prepare(config: "Config", processes: int) -> None:
    """Everything that can go wrong before training, found once instead of in each process."""
    from neuscale.cli.progress import create_progress
    from neuscale.data.order import check_shares
    from neuscale.models.registry import check_arch
    from neuscale.training.limit import Deadline
    from neuscale.training.micro_batch import accumulation_steps
    from neuscale.training.train import open_data

    train = config.train
    check_shares(train.global_batch_size, processes)
    accumulation_steps(train.micro_batch, train.global_batch_size, processes)
    Deadline(config.run.time_limit)
    check_arch(config.model)
    open_data(config, create_progress())


def _train(config: "Config", run: "RunFolder | None", as_json: bool) -> int:
    import torch

    from neuscale.cli.progress import create_progress
    from neuscale.cluster.cores import available_cores
    from neuscale.training.train import train

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    trained = train(config, run, create_progress())
    if trained.is_main:
        _show_result(trained, config, as_json)
    return EXIT_RESUME if trained.outcome.stopped_by else 0


def _show_result(trained: "TrainedRun", config: "Config", as_json: bool) -> None:
    from neuscale.cli.console import beside, err, escape, print_json
    from neuscale.runs.manifest import read_manifest

    run, outcome = trained.run, trained.outcome
    manifest = read_manifest(run.manifest_file)
    if as_json:
        print_json({"run": str(run.path), "status": manifest.get("status"), **manifest.get("result", {})})
    if outcome.stopped_by:
        err.print(f"stopped by {outcome.stopped_by} after step {outcome.steps:,}; everything is saved.")
        err.print(f"Go on with: [bold]{escape(_resume_command(run, config))}[/]")
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


def _show_table(name: str, outcome: "Outcome", last: "Evaluation") -> None:
    from rich.table import Table

    from neuscale.cli.console import escape, out
    from neuscale.cli.progress import duration

    table = Table(title=escape(name), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("top-1", f"{last.top1:.2%}")
    if len(last.confusion) > 5:
        table.add_row("top-5", f"{last.top5:.2%}")
    table.add_row("loss", f"{last.loss:.4f}")
    table.add_row("best top-1", f"{outcome.best_top1:.2%}")
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
