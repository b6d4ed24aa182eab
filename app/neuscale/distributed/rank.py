"""Rank of this process in a distributed run, and its start and end."""

import atexit
import json
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from neuscale.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rank:
    """Rank of a process, in 0 … `world_size` - 1."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> "Rank":
        """The rank of this process in torch's process group; rank 0 of 1 without a group."""
        import torch.distributed as dist

        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()


def gather_values(value: Any, device: "torch.device") -> "list[Any]":
    """Gather the JSON-serialisable `value` of every rank, in rank order. All ranks must call this.

    torch's own functions for this unpickle what they receive.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(content)], device=device))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(content)] = content
    gathered = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    pairs = zip(gathered, sizes, strict=True)
    return [json.loads(bytes(each[: int(size)].tolist())) for each, size in pairs]


# Variables that every launcher sets for its processes, besides WORLD_SIZE.
_OF_A_LAUNCHER = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def started_by_launcher() -> bool:
    """True if a launcher (ours, torchrun, accelerate) started this process as one of several.

    Raises UsageError if WORLD_SIZE is set without the other variables, or is not a number.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    size = int(text) if text.isascii() and text.isdecimal() else 0
    if size == 1:
        return False
    missing = [name for name in _OF_A_LAUNCHER if name not in os.environ]
    if size == 0 or missing:
        without = f", but not {' and '.join(missing)}" if missing else ""
        raise UsageError(
            f"WORLD_SIZE={text} is set in this environment{without}: a launcher sets it for its processes.",
            "Unset it (unset WORLD_SIZE), or start the processes with torchrun.",
        )
    return True


def leave_process_group() -> None:
    """Destroy the process group, if there is one: at interpreter exit its threads sometimes abort."""
    dist = sys.modules.get("torch.distributed")  # not imported by commands that do not need it
    if dist is not None and dist.is_initialized():
        dist.destroy_process_group()


_abandoned = threading.Event()


def abandon_threads() -> None:
    """Make `end_process` wait for no thread, because one of them does not respond."""
    _abandoned.set()


def end_process(code: int) -> NoReturn:
    """Exit this process; a process of several exits without running the destructors of libraries.

    A gloo thread that still runs then aborts the process ("terminate called without an active exception"),
    and a training that is finished and saved would count as failed.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" or _abandoned.is_set():
        if not _abandoned.is_set():
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or none
                stream.flush()
        os._exit(code)
    sys.exit(code)
