"""Communication between the launchers of a run's nodes: startup, failures and shutdown.

They share the store that their workers use for the rendezvous. It is part of the first node's
launcher, which therefore exits last.
"""

import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from neuscale.distributed.nodes import SECRET, Nodes
from neuscale.distributed.worker_errors import REPORTS
from neuscale.errors import UserError

# Limit until the launchers of all nodes have joined: one may copy data for a long time before that.
_MEET = timedelta(minutes=30)


_ASK_SECONDS = 0.5


# How long a launcher with a failed worker waits for reports of earlier failures, which may be the cause.
_CAUSE_SECONDS = 2.0


# Delay after which a launcher prints that it waits for others.
_SAY_SECONDS = 8.0


# How long the store is kept, so that launchers that end their workers can read the cause.
_LEAVE_SECONDS = 15.0


_BACKLOG = 4096  # connections of workers that start at once


def connect(
    address: str, port: int, secret: str, timeout: timedelta, server: socket.socket | None = None
) -> Any:
    """Connect to the store at `address`:`port`, or, with `server`, serve it on that socket.

    Every key begins with `secret`, so that others who reach the port cannot use the keys of this run.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = TCPStore(
        address,
        port,
        is_master=server is not None,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=server.detach() if server else None,
    )
    return PrefixStore(f"neuscale/{secret}", store)


def join_process_group(backend: str, timeout: timedelta | None = None) -> None:
    """Initialise torch's process group, unless it exists or there is only one process.

    Workers of `launch` use its store, protected by the job's secret; those of another launcher use
    torch's default.
    """
    import torch.distributed as dist

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or dist.is_initialized():
        return
    if REPORTS not in os.environ:
        dist.init_process_group(backend, timeout=timeout)
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = connect(address, port, os.environ[SECRET], timeout or dist.default_pg_timeout)
    dist.init_process_group(
        backend, store=store, rank=int(os.environ["RANK"]), world_size=world_size, timeout=timeout
    )


def _listen(address: str, port: int) -> socket.socket:
    """A socket that listens only at `address`; torch's store by itself listens at all addresses."""
    family, kind, protocol, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, kind, protocol)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(target)
        server.listen(_BACKLOG)
    except OSError:
        server.close()
        raise
    return server


@dataclass(frozen=True)
class Failure:
    """First failure on a node, of process `rank`; `killed`: by a signal, so without an error message."""

    rank: int
    killed: bool
    exit_code: int


class Peers:
    """The launchers of all nodes, including this one. Raises UserError if they cannot connect."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self._holds_store = nodes.index == 0
        try:
            # Bound by this process, so that the port is free, whatever else runs on this machine.
            server = _listen(nodes.address, nodes.port) if self._holds_store else None
            self.port: int = server.getsockname()[1] if server else nodes.port
            self._store: Any = connect(nodes.address, self.port, nodes.secret, _MEET, server)
        except (RuntimeError, OSError) as error:
            what = "cannot listen there" if self._holds_store else "no launcher answers there"
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{nodes.address}:{nodes.port}, where the nodes of this run meet: {what} ({reason}).",
                "Set MASTER_ADDR to an address of the first node, MASTER_PORT to a port that is free on it.",
            ) from error
        self.heard = False  # True after a failure on another node
        self._asked = 0.0

    def meet(self, stop: Callable[[], bool]) -> bool:
        """Wait until the launchers of all nodes have joined; return False if `stop()` is true before."""
        if self.nodes.count == 1:
            return True
        self._store.add("launchers", 1)
        began, said = time.monotonic(), False
        until = began + _MEET.total_seconds()
        while self._store.add("launchers", 0) < self.nodes.count:
            if stop():
                return False
            if not said and time.monotonic() > began + _SAY_SECONDS:
                said = True
                print(self._waits_for(), file=sys.stderr, flush=True)
            if time.monotonic() > until:
                raise UserError(
                    f"{self._store.add('launchers', 0)} of {self.nodes.count} nodes are there"
                    f" after {_MEET.total_seconds() / 60:.0f} minutes.",
                    "What the others wait for is in their part of the job's output.",
                )
            time.sleep(_ASK_SECONDS)
        return True

    def _waits_for(self) -> str:
        there, names = self._store.add("launchers", 0), os.environ.get("SLURM_STEP_NODELIST", "")
        of = f" ({names})" if names else ""
        return (
            f"waiting for {self.nodes.count - there} of the {self.nodes.count} nodes{of}: this command has to"
            " be started on each of them, as srun does it. In a shell of 'srun --pty' that has several nodes"
            " it runs on one: leave it, and give the command to srun."
        )

    def failed(self) -> bool:
        """True if a process on another node failed; the store is only queried from time to time."""
        if self.nodes.count == 1 or time.monotonic() < self._asked + _ASK_SECONDS:
            return False
        self._asked = time.monotonic()
        try:
            self.heard = self._store.add("failures", 0) > 0
        except Exception:  # the launcher of the first node is gone, and the store with it
            self.heard = True
        return self.heard

    def tell(self, failure: Failure) -> None:
        """Report to the other launchers that a process failed on this node."""
        if self.nodes.count == 1:
            return
        with suppress(Exception):  # the launcher of the first node is gone
            # Stored before it is counted, so that a reader of the count finds it.
            self._store.set(f"failure/{self._store.add('told', 1)}", json.dumps(asdict(failure)))
            self._store.add("failures", 1)

    def leave(self, failing: bool) -> Failure | None:
        """Wait until the launchers of all nodes are done: Slurm ends tasks that outlive the first for long.

        Return the failure that caused the others: the first process that was killed, else the first
        that failed. None without a failure, or if it is not known.
        """
        if self.nodes.count == 1:
            return None
        cause = None
        try:
            if failing:
                time.sleep(_CAUSE_SECONDS)
                cause = self._cause()
            until = time.monotonic() + _LEAVE_SECONDS if failing else math.inf
            self._store.add("done", 1)
            while self._store.add("done", 0) < self.nodes.count and time.monotonic() < until:
                time.sleep(_ASK_SECONDS)
                if not failing and self.failed():
                    return self._cause()
            self._store.add("left", 1)
            until = time.monotonic() + _LEAVE_SECONDS
            while self._holds_store and self._store.add("left", 0) < self.nodes.count:
                if time.monotonic() > until:
                    break
                time.sleep(_ASK_SECONDS / 5)
        except Exception:  # the launcher of the first node is gone
            pass
        return cause

    def _cause(self) -> Failure | None:
        told = []
        for number in range(1, self._store.add("failures", 0) + 1):
            self._store.wait([f"failure/{number}"], timedelta(seconds=_CAUSE_SECONDS))
            told.append(_failure(self._store.get(f"failure/{number}")))
        return next((failure for failure in told if failure.killed), told[0] if told else None)


def _failure(message: bytes) -> Failure:
    """Parse a message. Raises ValueError, TypeError or KeyError if it does not describe a failure."""
    content = json.loads(message)
    rank, code = int(content["rank"]), int(content["exit_code"])
    if not 0 < code < 256:
        raise ValueError(f"exit code {code}")
    return Failure(rank, bool(content["killed"]), code)
