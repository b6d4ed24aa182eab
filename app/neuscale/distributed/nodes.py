"""The nodes of a run, as srun and the batch scheduler describe them."""

import os
import re
import socket
import subprocess
from dataclasses import dataclass, field

from neuscale.errors import UsageError

# Shared by the nodes of a job, as slurm/train.sbatch makes it: see `Nodes.secret`.
SECRET = "NEUSCALE_JOB_SECRET"


NO_SECRET = (
    f"the nodes of this run meet without a secret, and whoever reaches the port can stop it; before srun:"
    f" export {SECRET}=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')"
)


@dataclass(frozen=True)
class Nodes:
    """`count` nodes, of which this is number `index`; the launcher of the first listens at `address`:`port`.

    A port of 0 is any free one. `secret`: known to the processes of the job alone.
    """

    count: int = 1
    index: int = 0
    name: str = ""
    address: str = "127.0.0.1"
    port: int = 0
    secret: str = field(default="", repr=False)


def srun_nodes() -> Nodes:
    """The nodes of the Slurm step that this process is a task of; without one, this machine alone.

    UsageError where srun started several tasks on a node: each would be a run of its own.
    """
    tasks, count = _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_STEP_NUM_NODES")
    if tasks > count:
        raise UsageError(
            f"srun started {tasks} tasks on {count} node{'s' if count > 1 else ''},"
            " and each would train a run of its own.",
            "One task a node starts the processes there: srun --ntasks-per-node 1 neuscale train --gpus N.",
        )
    if count <= 1:
        return Nodes()
    port = os.environ.get("MASTER_PORT", "")
    return Nodes(
        count=count,
        index=_number("SLURM_NODEID", 0),
        name=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        address=os.environ.get("MASTER_ADDR") or _address(first_host(os.environ["SLURM_STEP_NODELIST"])),
        port=int(port) if port.isdecimal() else job_port(_number("SLURM_JOB_ID")),
        secret=os.environ.get(SECRET, ""),
    )


def in_step() -> bool:
    """True if srun started this process."""
    return "SLURM_STEP_ID" in os.environ


def first_host(hosts: str) -> str:
    """The first name of a list as Slurm writes it: `gpu-[003-007,9],login1` begins with `gpu-003`."""
    first = re.split(r",(?![^\[]*\])", hosts)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _address(node: str) -> str:
    """The address by which Slurm reaches a node: its name, unless Slurm is there and says another."""
    try:
        said = subprocess.run(
            ["scontrol", "show", "node", node], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):  # as in a container
        return node
    found = re.search(r"\bNodeAddr=(\S+)", said.stdout)
    return found[1] if found else node


def job_port(job: int) -> int:
    """A port that the job's number gives, below those that systems hand out by themselves."""
    return 20_000 + job % 12_000


def _number(name: str, default: int = 1) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


# Slurm, PBS, LSF, Grid Engine.
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID")


def in_batch_job() -> bool:
    """True in a job of a batch scheduler."""
    return any(os.environ.get(name) for name in _JOB_VARIABLES)
