"""Checks of a Slurm allocation: its nodes, the network between them, their disks, its remaining time."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from neuscale.distributed.nodes import SECRET, in_batch_job
from neuscale.distributed.rank import gather_values
from neuscale.distributed.rendezvous import join_process_group
from neuscale.errors import UsageError
from neuscale.fs import existing_parent
from neuscale.hardware import available_cores, driver_version, host_memory
from neuscale.paths import data_root, runs_root
from neuscale.program import program

# About the size of the gradients of a small model (CPU) and of a large one (GPU).
_ALL_REDUCE_BYTES = {"gloo": 32 << 20, "nccl": 256 << 20}


_ROUNDS = 5


_PATIENCE = timedelta(minutes=2)


_DISK_BYTES = 256 << 20


_DISK_SHARE = 0.25  # of the free space, at most


def start_on_nodes(words: list[str]) -> int:
    """Run `neuscale WORDS` on each node of this process's Slurm allocation; return the exit code.

    Raises UsageError outside an allocation, or without srun.
    """
    if not in_batch_job():
        raise UsageError(
            "this is not a Slurm allocation, so there are no nodes to check.",
            "Ask for one: salloc --nodes 2 --gpus-per-node 1 and there again: neuscale doctor --cluster.",
        )
    if shutil.which("srun") is None:
        raise UsageError(
            "there is no srun here to reach the nodes with.",
            "From outside of the container: srun --ntasks-per-node 1 apptainer run --nv neuscale.sif"
            " doctor --cluster.",
        )
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--wait=30"]
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        command.append(f"--cpus-per-task={cpus}")
    secret = os.environ.get(SECRET) or secrets.token_hex(16)
    return subprocess.run(
        [*command, *program(*words)], env={**os.environ, SECRET: secret}, check=False
    ).returncode


def examine_cluster() -> dict[str, Any] | None:
    """Findings by name on rank 0; None on other ranks. All ranks must call this."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if world > 1:
        join_process_group(backend, _PATIENCE)
    own = _node() if os.environ.get("LOCAL_RANK", "0") == "0" else None
    network = "one process: nothing to ask" if world == 1 else _all_reduce(backend, world)
    everybody = gather_values(own, torch.device("cuda" if backend == "nccl" else "cpu"))
    if rank != 0:
        return None
    nodes = [node for node in everybody if node is not None]
    problems = [f"{node['name']}: {problem}" for node in nodes for problem in node.pop("problems")]
    if len({node["driver"] for node in nodes}) > 1:
        problems.append(
            "The nodes have different drivers: " + ", ".join(f"{n['name']} {n['driver']}" for n in nodes)
        )
    findings: dict[str, Any] = {"nodes": len(nodes), "processes": world}
    findings |= {node.pop("name"): node for node in nodes}
    return findings | {"network": network, "time_left": _time_left(), "problems": problems}


def _node() -> dict[str, Any]:
    """Findings about this node, measured by one of its processes."""
    problems: list[str] = []
    found: dict[str, Any] = {
        "name": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or "none",
        "driver": driver_version(),
        "cores": available_cores(),
        "memory": f"{host_memory() / 2**30:.1f} GiB",
    }
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if found["cores"] < processes:
        problems.append(f"{processes} processes share {found['cores']} cores: ask for more, --cpus-per-task.")
    found["data"] = _disk(data_root(), problems)
    if runs_root().absolute().parent != data_root().absolute().parent:
        found["runs"] = _disk(runs_root(), problems)
    if local := os.environ.get("TMPDIR"):
        found["local"] = _disk(Path(local), problems)
    else:
        found["local"] = "none"
        problems.append("$TMPDIR is not set, so data is read from where it is. Set it in slurm/site.env.")
    return found | {"problems": problems}


def _disk(folder: Path, problems: list[str]) -> str:
    """Write and read speed of the disk of `folder`, and its free space."""
    there = existing_parent(folder)
    free = shutil.disk_usage(there).free
    size = min(_DISK_BYTES, int(free * _DISK_SHARE)) >> 20 << 20
    words = f"{folder}, {free / 1e9:.0f} GB free"
    file = there / f".neuscale-doctor-{os.getpid()}"
    try:
        write, read = _speeds(file, size)
    except OSError as error:
        problems.append(f"{folder}: cannot be written to ({error.strerror}).")
        return words
    finally:
        file.unlink(missing_ok=True)
    return f"{words}, writes {write / 1e6:,.0f} MB/s, reads {read / 1e6:,.0f} MB/s"


def _speeds(file: Path, size: int) -> tuple[float, float]:
    """Write speed, including fsync, and read speed without the page cache, in bytes per second."""
    piece = os.urandom(1 << 20)
    with file.open("wb") as stream:

        def write() -> None:
            for _ in range(size >> 20):
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())

        writing = _seconds(write)
    with file.open("rb", buffering=0) as source:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        def read() -> None:
            while source.read(1 << 20):
                pass

        reading = _seconds(read)
    return size / writing, size / reading


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return max(time.perf_counter() - began, 1e-9)


def _all_reduce(backend: str, world: int) -> str:
    """Bandwidth of an all-reduce over all ranks, computed as the bus bandwidth of nccl-tests."""
    device = "cuda" if backend == "nccl" else "cpu"
    size = _ALL_REDUCE_BYTES[backend]
    values = torch.ones(size // 4, device=device)
    dist.all_reduce(values)
    assert float(values[0]) == world, f"an all-reduce of ones over {world} processes gave {float(values[0])}"
    times = []
    for _ in range(_ROUNDS):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    seconds = sorted(times)[_ROUNDS // 2]
    bus = 2 * (world - 1) / world * size / seconds
    return (
        f"{backend} all-reduce of {size >> 20} MiB over {world} processes: {seconds * 1000:.1f} ms,"
        f" {bus / 1e9:.2f} GB/s bus bandwidth"
    )


def _time_left() -> str:
    """Remaining time of the job, as Slurm reports it."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal():
        return str(timedelta(seconds=max(0, int(end) - int(time.time()))))
    command = ["squeue", "--noheader", f"--jobs={os.environ.get('SLURM_JOB_ID', '')}", "--format=%L"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # no squeue, as in a container
        said = ""
    return said or "unknown"
