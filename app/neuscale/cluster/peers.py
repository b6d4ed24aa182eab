"""What the launchers of a run's nodes tell each other: that one failed, and that all are done.

They share the store at which their workers meet. It lives in the launcher of the first node,
which therefore leaves last.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from neuscale.cluster.nodes import Nodes
from neuscale.errors import UserError

# Until the launchers of all nodes are there: one may copy data for long before it starts processes.
_MEET = timedelta(minutes=30)
_ASK_SECONDS = 0.5
# How long a launcher whose worker failed listens for one that failed before, as the cause of it.
_CAUSE_SECONDS = 2.0
# How long the store stays, so that launchers that end their workers hear of the cause.
_LEAVE_SECONDS = 15.0


@dataclass(frozen=True)
class Failure:
    """The first failure of a node: of process `rank`, which a signal ended or which has said why."""

    rank: int
    killed: bool
    exit_code: int


class Peers:
    """The launchers of all nodes, this one among them. UserError where they do not find each other."""

    def __init__(self, nodes: Nodes) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self.nodes = nodes
        self._holds_store = nodes.index == 0
        # Held by this process, so that the port is a free one, whatever else runs on this machine.
        try:
            self._store: Any = TCPStore(
                nodes.address, nodes.port, is_master=self._holds_store, wait_for_workers=False, timeout=_MEET
            )
        except RuntimeError as error:
            what = "cannot listen there" if self._holds_store else "no launcher answers there"
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{nodes.address}:{nodes.port}, where the nodes of this run meet: {what} ({reason}).",
                "Set MASTER_ADDR to an address of the first node, MASTER_PORT to a port that is free on it.",
            ) from error
        self.port: int = self._store.port
        self.heard = False  # of a failure elsewhere
        self._asked = 0.0

    def meet(self, stop: Callable[[], bool]) -> bool:
        """Waits until the launchers of all nodes are there; False where `stop()` before."""
        if self.nodes.count == 1:
            return True
        self._store.add("launchers", 1)
        until = time.monotonic() + _MEET.total_seconds()
        while self._store.add("launchers", 0) < self.nodes.count:
            if stop():
                return False
            if time.monotonic() > until:
                raise UserError(
                    f"{self._store.add('launchers', 0)} of {self.nodes.count} nodes are there"
                    f" after {_MEET.total_seconds() / 60:.0f} minutes.",
                    "What the others wait for is in their part of the job's output.",
                )
            time.sleep(_ASK_SECONDS)
        return True

    def failed(self) -> bool:
        """Whether a process of another node failed; asks the store now and then only."""
        if self.nodes.count == 1 or time.monotonic() < self._asked + _ASK_SECONDS:
            return False
        self._asked = time.monotonic()
        try:
            self.heard = self._store.add("failures", 0) > 0
        except Exception:  # the launcher of the first node is gone, and the store with it
            self.heard = True
        return self.heard

    def tell(self, failure: Failure) -> None:
        """Says to the other launchers that a process failed here."""
        if self.nodes.count == 1:
            return
        with suppress(Exception):  # the launcher of the first node is gone: nobody to tell
            # Said before it is counted, so that who sees the count finds it.
            self._store.set(f"failure/{self._store.add('told', 1)}", json.dumps(asdict(failure)))
            self._store.add("failures", 1)

    def leave(self, failing: bool) -> Failure | None:
        """Waits until the launchers of all nodes are done: Slurm ends those that outlive the first by long.

        Returns the failure that made the others fail: the first process that was killed, else the
        first that failed. None without a failure, and where nobody can say.
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
            told.append(Failure(**json.loads(self._store.get(f"failure/{number}"))))
        return next((failure for failure in told if failure.killed), told[0] if told else None)
