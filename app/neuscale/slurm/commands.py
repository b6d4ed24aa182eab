"""Slurm commands: query the partitions of a cluster, and submit a job."""

import difflib
import os
import shutil
import subprocess
from dataclasses import dataclass

from neuscale.errors import UsageError, UserError

_PATIENCE = 60  # seconds; a busy controller may be slow


# Options whose environment variables, SBATCH_…, take precedence over a script.
_OVERRIDING = [
    "ACCOUNT",
    "ARRAY_INX",
    "EXPORT",
    "GET_USER_ENV",
    "GPUS",
    "GPUS_PER_NODE",
    "GPUS_PER_TASK",
    "GRES",
    "JOB_NAME",
    "MEM_PER_NODE",
    "NO_REQUEUE",
    "OPEN_MODE",
    "OUTPUT",
    "PARTITION",
    "REQUEUE",
    "SIGNAL",
    "TIMELIMIT",
]


@dataclass(frozen=True)
class Partition:
    """A partition: time limit in seconds (None: no limit), number of nodes, cores per node."""

    name: str
    seconds: float | None
    nodes: int
    cores: int
    is_default: bool


def check_sbatch() -> None:
    """Raise UsageError if this machine cannot submit jobs."""
    if shutil.which("sbatch") is None:
        raise UsageError(
            "there is no sbatch here, so no job can be submitted.",
            "Run this on a login node of the cluster; `dry_run` prints the script anywhere.",
        )


def check_partition(name: str | None, seconds: float, nodes: int, cores: int) -> None:
    """Raise UsageError for a partition that is missing or too small, or whose time limit is too short.

    `name` None: Slurm's default partition.
    """
    there = partitions()
    if name is None:
        chosen = [partition for partition in there if partition.is_default]
        if not chosen:
            raise UsageError(
                "this cluster has no default partition.",
                f"Set `partition` to one of {', '.join(sorted({p.name for p in there}))}.",
            )
    else:
        chosen = [partition for partition in there if partition.name == name]
    if not chosen:
        known = sorted({partition.name for partition in there})
        close = difflib.get_close_matches(name or "", known, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"There are: {', '.join(known)}."
        raise UsageError(f"partition {name}: this cluster has none of this name.", hint)
    limit = chosen[0].seconds
    if limit is not None and seconds > limit:
        raise UsageError(
            f"partition {chosen[0].name}: its jobs may take {limit / 3600:g} h,"
            f" and {seconds / 3600:g} h are asked for.",
            "Request less: a run that is not finished by then is saved and resumes in another job.",
        )
    most = sum(partition.nodes for partition in chosen)
    if nodes > most:
        raise UsageError(f"partition {chosen[0].name}: it has {most} nodes, and {nodes} are asked for.")
    largest = max(partition.cores for partition in chosen)
    if cores > largest:
        raise UsageError(
            f"partition {chosen[0].name}: its nodes have {largest} cores, and {cores} are asked for.",
            "Request fewer on each node: `cpus`.",
        )


def partitions() -> list[Partition]:
    """Partitions that sinfo lists; one with several kinds of nodes appears several times."""
    found = []
    for line in ask("sinfo", "--noheader", "--format=%P|%l|%D|%c").splitlines():
        name, limit, nodes, cores = line.split("|")
        is_default = name.endswith("*")
        found.append(
            Partition(name.rstrip("*"), _seconds(limit), int(nodes), int(cores.rstrip("+")), is_default)
        )
    return found


def submit(script: str, environment: dict[str, str]) -> str:
    """Submit `script` with sbatch; return the job number. Raises UserError with sbatch's message."""
    overriding = {f"SBATCH_{name}" for name in _OVERRIDING}
    environment = {
        name: value
        for name, value in environment.items()
        # If this runs inside a job, that job's variables would be passed on and affect srun in the new one.
        if name not in overriding and (name == "SLURM_CONF" or not name.startswith("SLURM_"))
    }
    said = ask("sbatch", "--parsable", environment=environment, text=script)
    return said.strip().splitlines()[-1].partition(";")[0]


def ask(*command: str, environment: dict[str, str] | None = None, text: str | None = None) -> str:
    """Run a Slurm command and return its stdout. Raises UserError if it fails."""
    try:
        done = subprocess.run(
            command,
            input=text,
            env=environment if environment is not None else dict(os.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: there is no such command here.") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]}: no answer within {_PATIENCE} s.", "Is Slurm's controller up? scontrol ping"
        ) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        said = [line.removeprefix(f"{command[0]}: ").removeprefix("error: ") for line in lines]
        raise UserError(f"{command[0]}: {'; '.join(said)}")
    return done.stdout


def _seconds(limit: str) -> float | None:
    """Seconds of a time [D-][[HH:]MM:]SS as printed by sinfo; None for "infinite"."""
    days, _, clock = limit.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        whole = 86400 * int(days or 0)
    except ValueError:  # infinite, n/a
        return None
    return float(whole + sum(part * 60**power for power, part in enumerate(reversed(parts))))
