"""`neuscale submit`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuscale.errors import UsageError

if TYPE_CHECKING:
    from neuscale.config import Config
    from neuscale.slurm.script import Job
    from neuscale.slurm.site import Site

# Default number of cores per process: for the loader's prefetching, and for the process itself.
CPUS_PER_PROCESS = 4


def submit_command(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=VALUE",
            help="As for 'neuscale train'. Values with commas between them make an array of jobs:"
            " optim.lr=1e-3,3e-4 run.seed=0,1,2.",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Nodes.")] = 1,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=0, help="GPUs on each node, a process each; 0: none; without it, one."),
    ] = None,
    gpu_type: Annotated[
        str | None,
        typer.Option("--gpu-type", help="GPU type as Slurm names it (H100); without it, any."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="CPU processes on each node, without GPUs.")
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option("--cpus", min=1, help=f"Cores on each node; without it, {CPUS_PER_PROCESS} a process."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--mem", help="Memory on each node (64G); without it, Slurm's default."),
    ] = None,
    time: Annotated[
        str,
        typer.Option(
            "--time", help="Time limit: 90m, 8h, 07:45:00. An unfinished run resumes in another job."
        ),
    ] = "8h",
    lead: Annotated[
        str, typer.Option("--lead", help="Time before the limit at which the run is saved and requeued.")
    ] = "5m",
    partition: Annotated[str | None, typer.Option("--partition", "-p", help="Partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", "-A", help="Account.")] = None,
    sif: Annotated[
        Path | None, typer.Option("--sif", help="Apptainer image; without it, NEUSCALE_SIF of the site file.")
    ] = None,
    venv: Annotated[
        bool, typer.Option("--venv", help="Run in this Python environment, without an image.")
    ] = False,
    site_file: Annotated[
        Path | None, typer.Option("--site", help="The site file; by default slurm/site.env if it exists.")
    ] = None,
    sbatch: Annotated[
        str | None,
        typer.Option("--sbatch", help="Further options of sbatch, in one quoted string."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script, and submit nothing.")] = False,
) -> None:
    """Train in a Slurm job, which is saved before its time is over, requeued, and goes on.

    What differs from cluster to cluster stands in slurm/site.env.
    """
    from neuscale.slurm.commands import check_partition, check_sbatch
    from neuscale.slurm.script import Job, batch_script
    from neuscale.slurm.site import read_site
    from neuscale.sweep.folder import name_runs
    from neuscale.sweep.grid import sweep_overrides

    if gpus and processes:
        raise UsageError("--gpus and --processes contradict each other.", "--processes is for the CPU.")
    if gpus is None:
        gpus = 0 if processes else 1
    local = gpus or processes or 1
    seconds, save = _times(time, lead)
    lists = sweep_overrides([word for word in overrides or [] if not word.startswith("run.name=")])
    configs = [_checked(overrides, local * nodes) for overrides in lists]
    name = _name(overrides or [], configs[0])
    site = read_site(site_file)
    image, environment = _program(site, sif, venv)
    logs = site.folder("NEUSCALE_RUNS", "runs") / "jobs"
    partition = partition or site.environment.get("SBATCH_PARTITION") or None
    job = Job(
        name=name,
        runs=[[*run.words, f"run.name={run.name}"] for run in name_runs(lists, name)],
        logs=logs,
        nodes=nodes,
        gpus=gpus,
        gpu_type=gpu_type,
        processes=local,
        cpus=cpus or CPUS_PER_PROCESS * local,
        seconds=seconds,
        lead=save,
        partition=partition,
        account=account or site.environment.get("SBATCH_ACCOUNT") or None,
        memory=memory,
        sif=image,
        venv=environment,
        sbatch=_sbatch_words(sbatch),
        site=site.file,
        command=["neuscale", *sys.argv[1:]],
    )
    script = batch_script(job)
    if not dry_run:
        check_sbatch()
        check_partition(partition, seconds, nodes, job.cpus)
    typer.echo(script, nl=False)
    _warn_of_data(site, configs)
    if not dry_run:
        _submit(job, script, site)


def _submit(job: "Job", script: str, site: "Site") -> None:
    from neuscale.cli.console import beside, err, escape
    from neuscale.fs import make_folder
    from neuscale.slurm.commands import submit
    from neuscale.slurm.jobs import record_submission

    make_folder(job.logs)
    number = submit(script, site.environment)
    record = record_submission(job, number, script)
    several = len(job.runs) > 1
    log = job.logs / (f"{number}-0.log" if several else f"{number}.log")
    err.print(
        f"[bold]job {number}[/], {len(job.runs)} run{'s' if several else ''} in {escape(job.logs.parent)}:"
    )
    for run in record.names:
        err.print(f"  {escape(run)}")
    commands = {
        f"squeue --jobs={number}": "where it is in the queue",
        f"tail -F {shlex.quote(str(log))}": "what it prints" + (", here the first" if several else ""),
        f"scancel {number}": "save and end it",
        f"{beside('neuscale')} submit … run.name={record.names[0]}": "resume it in another job",
    }
    width = max(map(len, commands))
    for command, what in commands.items():
        err.print(f"  [bold]{escape(command.ljust(width))}[/]  {what}")


def _sbatch_words(text: str | None) -> list[str]:
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise UsageError(f"--sbatch {text}: {error}.", "Close the quotation marks.") from error


def _times(time: str, lead: str) -> tuple[float, float]:
    from neuscale.units import limit_seconds

    seconds, save = limit_seconds(time, "--time "), limit_seconds(lead, "--lead ")
    if seconds < 60:
        raise UsageError(f"--time {time}: Slurm counts in minutes.", "Ask for one at least: --time 1m.")
    if seconds < 2 * save:
        raise UsageError(
            f"--time {time} is too short: {lead} of it are kept for saving,"
            " and as much should be left to train in.",
            "Ask for more, or for less to save in: --lead, which has to be longer than one checkpoint takes.",
        )
    return seconds, save


def _checked(overrides: list[str], processes: int) -> "Config":
    """Compose the configuration of one run. Raises UsageError for errors that would make the job fail."""
    from neuscale.config import compose_config
    from neuscale.data.sampling import check_shares

    config = compose_config(overrides)
    check_shares(config.train.global_batch_size, processes)
    return config


def _name(overrides: list[str], config: "Config") -> str:
    from neuscale.runs.folder import check_name, default_name

    given = [word.partition("=")[2] for word in overrides if word.startswith("run.name=")]
    name = given[-1] if given else default_name(config)
    check_name(name)
    return name


def _program(site: "Site", sif: Path | None, venv: bool) -> tuple[Path | None, Path | None]:
    """Container image, or Python environment, to run in; the other is None. Raises UsageError."""
    if sif is not None and venv:
        raise UsageError("--sif and --venv contradict each other.", "Use only one of the two.")
    if sif is None and not venv and (named := site.environment.get("NEUSCALE_SIF")):
        sif = Path(named)
    if sif is not None:
        if not sif.is_file():
            raise UsageError(
                f"{sif}: there is no such image.", "Build it (make sif), or run without one: --venv."
            )
        return sif.absolute(), None
    folder = Path(sys.prefix) if venv else Path(site.environment.get("NEUSCALE_VENV") or sys.prefix)
    if not (folder / "bin" / "neuscale").is_file():
        raise UsageError(f"{folder}: there is no neuscale in this environment.", "Make it: make setup.")
    return None, folder.absolute()


def _warn_of_data(site: "Site", configs: "list[Config]") -> None:
    from neuscale.cli.console import beside, err, escape
    from neuscale.data.datasets import is_prepared

    root = site.folder("NEUSCALE_DATA", "data")
    for name in sorted({config.data.name for config in configs if config.data.source is None}):
        if not is_prepared(name, root):
            command = f"NEUSCALE_DATA={shlex.quote(str(root))} {beside('neuscale')} data prepare {name}"
            err.print(
                f"[yellow]warning:[/] {escape(name)} is not prepared in {escape(root)},"
                f" and nodes often have no network: {escape(command)}"
            )
