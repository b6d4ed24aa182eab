"""Launcher: start the workers of a run on this node, in step with other nodes, and end them together.

Workers get the same environment as from torchrun, so they need not distinguish the two.
torchrun's own agent is not used: it does not handle a second Ctrl-C, cannot distinguish a run
that was saved from one that never started, and leaves a folder in /tmp at each launch.
"""

import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuscale.distributed.nodes import SECRET, Nodes
from neuscale.distributed.rendezvous import Failure, Peers
from neuscale.distributed.signals import (
    END_WITH_PARENT,
    SAVE_SIGNAL,
    STOP_SIGNALS,
    accept_save_signal,
    hold_save_signal,
)
from neuscale.distributed.worker_errors import REPORTS, _first_report
from neuscale.errors import EXIT_FAILED, EXIT_RESUME, WorkerError
from neuscale.hardware import available_cores
from neuscale.program import program

POLL_SECONDS = 0.1


# Seconds until workers are killed: after a request to stop, in which they save, and after another
# worker has failed.
SAVE_SECONDS = 600


FAILED_SECONDS = 10


Worker = subprocess.Popen[bytes]


def launch(arguments: list[str], processes: int, nodes: Nodes | None = None, quiet: bool = False) -> int:
    """Run `neuscale ARGUMENTS` in `processes` connected processes per node; return their exit code.

    `quiet`: discard the workers' stdout, for a command that prints its own result there.

    When one worker fails, the others are ended on all nodes, and its error is raised as WorkerError
    on its own node. SIGINT, SIGTERM and SIGHUP are forwarded, and the launcher waits for the
    workers; a second one kills them. SIGUSR2 is forwarded each time.
    """
    nodes = nodes or Nodes()
    if nodes.count == 1:
        nodes = replace(nodes, secret=secrets.token_hex(16))
    peers = Peers(nodes)
    first = nodes.index * processes
    shared = {
        "MASTER_ADDR": nodes.address,
        "MASTER_PORT": str(peers.port),
        "WORLD_SIZE": str(nodes.count * processes),
        "LOCAL_WORLD_SIZE": str(processes),
        SECRET: nodes.secret,
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // processes))),
    }
    if nodes.count == 1 and sys.platform == "linux":
        shared["GLOO_SOCKET_IFNAME"] = os.environ.get(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # not reachable from other machines
    with tempfile.TemporaryDirectory(prefix="neuscale-") as folder:
        with _workers_and_signals() as (workers, received):
            if peers.meet(stop=lambda: bool(received)):
                for local in range(processes):
                    own = {"RANK": str(first + local), "LOCAL_RANK": str(local), REPORTS: folder}
                    stdout = subprocess.DEVNULL if quiet else None
                    env = os.environ | shared | own
                    workers.append(
                        subprocess.Popen(
                            program(*arguments), env=env, stdout=stdout, preexec_fn=END_WITH_PARENT
                        )
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
        before = " before it could save" if arguments[0] == "train" else ""
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
    """Context that yields a list for the workers, and the list of stop signals received so far.

    The first signal is forwarded to the workers, the second kills them; no worker outlives this context.
    """
    workers: list[Worker] = []
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)  # before sending: the next signal may arrive meanwhile
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
        hold_save_signal()  # it would be useless now, and must not end this process
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(workers: list[Worker], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def _wait(workers: list[Worker], received: list[int], peers: Peers, first: int) -> int | None:
    """Wait until all workers have ended; return the local rank of the first that failed, or None.

    The workers are also ended if a process on another node failed (`peers.heard` is true then).
    """
    failed: int | None = None
    deadline = math.inf
    while True:
        codes = [worker.poll() for worker in workers]
        bad = [rank for rank, code in enumerate(codes) if code not in (None, 0, EXIT_RESUME)]
        if bad and failed is None and not peers.heard:
            # If several failed at once, a killed one is the cause of the others' errors.
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
