"""The nodes of a run, as srun and the batch scheduler describe them."""

import os
import re
import socket
import subprocess
from dataclasses import dataclass, field

from neuscale.errors import UsageError

# Secret shared by the nodes of a job, created in slurm/train.sbatch; see `Nodes.secret`.
SECRET = "NEUSCALE_JOB_SECRET"


NO_SECRET = (
    f"the nodes of this run meet without a secret, and whoever reaches the port can stop it; before srun:"
    f" export {SECRET}=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')"
)


@dataclass(frozen=True)
class Nodes:
    """`count`: number of nodes; `index`: that of this node. The first node's launcher is at `address`:`port`.

    Port 0 means any free port. `secret`: known only to the processes of the job.
    """

    count: int = 1
    index: int = 0
    name: str = ""
    address: str = "127.0.0.1"
    port: int = 0
    secret: str = field(default="", repr=False)


def srun_nodes() -> Nodes:
    """Nodes of the Slurm step that this process is a task of; without a step, only this machine.

    Raises UsageError if srun started several tasks per node: each would be a separate run.
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
    """First host name of a Slurm node list: `gpu-003` for `gpu-[003-007,9],login1`."""
    first = re.split(r",(?![^\[]*\])", hosts)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _address(node: str) -> str:
    """Address of a node from scontrol; the node's name if scontrol is missing or reports none."""
    try:
        said = subprocess.run(
            ["scontrol", "show", "node", node], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):  # no scontrol, as in a container
        return node
    found = re.search(r"\bNodeAddr=(\S+)", said.stdout)
    return found[1] if found else node


def job_port(job: int) -> int:
    """Port derived from the job ID, below the range of ephemeral ports."""
    return 20_000 + job % 12_000


def _number(name: str, default: int = 1) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


# Job IDs of Slurm, PBS, LSF and Grid Engine.
_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID")


def in_batch_job() -> bool:
    """True in a job of a batch scheduler."""
    return any(os.environ.get(name) for name in _JOB_VARIABLES)
