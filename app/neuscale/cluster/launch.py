"""Starts the processes of a run on this machine, beside those on other nodes, and ends them together.

The environment that the processes get is torchrun's, so that they cannot tell the two
apart. torchrun's own agent is not used: it takes no second Ctrl-C for an answer, cannot
tell a run that was saved from one that never began, and leaves a folder in /tmp a launch.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuscale.cluster.cores import available_cores
from neuscale.cluster.nodes import Nodes
from neuscale.cluster.orphans import END_WITH_PARENT
from neuscale.cluster.peers import Failure, Peers
from neuscale.cluster.save_signal import SAVE_SIGNAL, accept_save_signal, hold_save_signal
from neuscale.errors import EXIT_FAILED, EXIT_RESUME, UsageError, UserError, WorkerError

# The folder in which a worker started from here leaves its error, instead of on the terminal.
REPORTS = "NEUSCALE_WORKER_REPORTS"

POLL_SECONDS = 0.1
# How long workers that were told to stop may take to save before they are killed,
# and how long those may live on that wait for one that failed.
SAVE_SECONDS = 600
FAILED_SECONDS = 10

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Worker = subprocess.Popen[bytes]


def check_gpus(wanted: int) -> None:
    """Raises UsageError where there are fewer than `wanted` usable GPUs."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < wanted:
        found = "there is none" if there == 0 else f"there {'is' if there == 1 else 'are'} {there}"
        raise UsageError(
            f"{wanted} GPU{'s' if wanted > 1 else ''} asked for, and {found} that can be used here.",
            "Ask for fewer (0 is the CPU); 'neuscale doctor' says what it finds.",
        )


def started_by_launcher() -> bool:
    """Whether a launcher (ours, torchrun, accelerate) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def report_to_launcher(error: UserError) -> bool:
    """Leaves a worker's error for `launch` to raise; False where no `launch` started this process."""
    folder = os.environ.get(REPORTS)
    if not folder:
        return False
    told = {"problem": error.problem, "fix": error.fix, "exit_code": error.exit_code}
    report = json.dumps({"time": time.time(), **told})
    part = Path(folder, f".{os.getpid()}")
    try:
        part.write_text(report)
        part.rename(part.with_name(os.environ["RANK"]))
    except OSError:
        return False
    return True


def leave_processes() -> None:
    """Parts from the other processes; left to the interpreter's end, its threads now and then abort."""
    dist = sys.modules.get("torch.distributed")  # not imported for a command that did not need it
    if dist is not None and dist.is_initialized():
        dist.destroy_process_group()


def launch(words: list[str], processes: int, nodes: Nodes | None = None, quiet: bool = False) -> int:
    """Runs `neuscale WORDS` in `processes` processes a node that find each other; returns their exit code.

    `quiet`: without what they say on standard output, for a command that has its own to say there.

    When one fails the others are ended, on all nodes, and its error is raised as WorkerError
    where it was. SIGINT, SIGTERM and SIGHUP are passed on and the workers waited for; a second
    one kills them. SIGUSR2 is passed on each time.
    """
    nodes = nodes or Nodes()
    peers = Peers(nodes)
    first = nodes.index * processes
    shared = {
        "MASTER_ADDR": nodes.address,
        "MASTER_PORT": str(peers.port),
        "WORLD_SIZE": str(nodes.count * processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // processes))),
    }
    with tempfile.TemporaryDirectory(prefix="neuscale-") as folder:
        with _workers_and_signals() as (workers, received):
            if peers.meet(stop=lambda: bool(received)):
                for local in range(processes):
                    own = {"RANK": str(first + local), "LOCAL_RANK": str(local), REPORTS: folder}
                    command = [sys.executable, "-m", "neuscale", *words]
                    stdout = subprocess.DEVNULL if quiet else None
                    env = os.environ | shared | own
                    workers.append(
                        subprocess.Popen(command, env=env, stdout=stdout, preexec_fn=END_WITH_PARENT)
                    )
                    if received:
                        workers[-1].send_signal(received[0])
                accept_save_signal()  # there are workers to pass it on to
            failed = _wait(workers, received, peers, first)
            cause = peers.leave(failing=failed is not None or peers.heard or not workers)
        codes = [worker.returncode for worker in workers]
        if cause is not None and not first <= cause.rank < first + processes:
            return cause.exit_code  # the launcher of its node says why
        if failed is None and peers.heard:
            problem = "the launcher of the first node is gone."
            raise WorkerError(problem, "Its part of the output may say why.", EXIT_FAILED)
        told = _first_report(Path(folder))
        explained = failed is not None and (codes[failed] > 0 or Path(folder, str(first + failed)).exists())
    if failed is None and codes:
        return max(codes)
    if told and explained:
        raise WorkerError(told["problem"], told["fix"], told["exit_code"])
    if received:
        name = signal.Signals(received[0]).name
        before = " before it could save" if words[0] == "train" else ""
        raise WorkerError(f"stopped by {name}{before}.", "", 128 + received[0])
    assert failed is not None
    if codes[failed] > 0:
        return codes[failed]
    where = f" on {nodes.name}" if nodes.name else ""
    raise WorkerError(
        f"process {first + failed} of {nodes.count * processes}{where}"
        f" was ended by {signal.Signals(-codes[failed]).name}.",
        "If memory ran out: a smaller train.global_batch_size, or a smaller train.micro_batch.",
        EXIT_FAILED,
    )


@contextmanager
def _workers_and_signals() -> Iterator[tuple[list[Worker], list[int]]]:
    """A list for the workers, and one of the signals to stop that this process has had since.

    The first is passed on to the workers, the second kills them; none outlives this context.
    """
    workers: list[Worker] = []
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)  # first: the next one may come while this one is sent
        _send(workers, number if len(received) == 1 else signal.SIGKILL)

    def pass_on_to_save(number: int, _frame: object) -> None:
        _send(workers, number)

    handled = [n for n in STOP_SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # as under nohup
    before: dict[int, Any] = {number: signal.signal(number, pass_on) for number in handled}
    if SAVE_SIGNAL is not None:
        before[SAVE_SIGNAL] = signal.signal(SAVE_SIGNAL, pass_on_to_save)
    try:
        yield workers, received
    finally:
        _send(workers, signal.SIGKILL)
        hold_save_signal()  # too late to be of use, and not to end this process
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(workers: list[Worker], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def _wait(workers: list[Worker], received: list[int], peers: Peers, first: int) -> int | None:
    """Waits until all have ended; returns the local rank of the one that failed first, if one did.

    They are ended where a process of another node failed, which `peers` then has heard.
    """
    failed: int | None = None
    deadline = math.inf
    while True:
        codes = [worker.poll() for worker in workers]
        bad = [rank for rank, code in enumerate(codes) if code not in (None, 0, EXIT_RESUME)]
        if bad and failed is None and not peers.heard:
            # Of several at once, one that was killed is the cause of what the others report.
            failed = min(bad, key=lambda rank: (codes[rank] or 0) > 0)
            code = codes[failed] or 0
            peers.tell(Failure(first + failed, code < 0, max(code, EXIT_FAILED)))
            _send(workers, signal.SIGTERM)
            deadline = time.monotonic() + FAILED_SECONDS
        if None not in codes:
            return failed
        if failed is None and not peers.heard and peers.failed():
            _send(workers, signal.SIGTERM)
            deadline = time.monotonic() + FAILED_SECONDS
        if deadline == math.inf and (received or EXIT_RESUME in codes):
            deadline = time.monotonic() + SAVE_SECONDS
        if time.monotonic() > deadline:
            _send(workers, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _first_report(folder: Path) -> dict[str, Any] | None:
    """The error that a worker left first; the others' are often only that it went."""
    reports = [json.loads(path.read_text()) for path in folder.glob("[0-9]*")]
    return min(reports, key=lambda report: report["time"], default=None)
