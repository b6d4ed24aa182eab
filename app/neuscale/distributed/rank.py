"""This process among those of a distributed run."""

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
    """A process's number in 0 … `world_size` - 1."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> "Rank":
        """The rank of this process in torch's process group; the only one without a group."""
        import torch.distributed as dist

        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()


def gather_values(value: Any, device: "torch.device") -> "list[Any]":
    """Every process's `value`, of what JSON has, by rank. All processes call this, with their device.

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


# What every launcher gives to its processes beside WORLD_SIZE.
_OF_A_LAUNCHER = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def started_by_launcher() -> bool:
    """True in one of several processes that a launcher (ours, torchrun, accelerate) started.

    Raises UsageError where WORLD_SIZE is left in the environment without the rest, or is no number.
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
    """Destroy the process group, if there is one: at the interpreter's end its threads sometimes abort."""
    dist = sys.modules.get("torch.distributed")  # not imported by commands that do not need it
    if dist is not None and dist.is_initialized():
        dist.destroy_process_group()


_abandoned = threading.Event()


def abandon_threads() -> None:
    """Let the end of this process wait for no thread: one of them does not answer."""
    _abandoned.set()


def end_process(code: int) -> NoReturn:
    """End this process; one of several without the destructors of libraries.

    A thread of gloo that is still there when they run aborts the process ("terminate called without an active
    exception"), and a training that is finished and saved would count as failed.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" or _abandoned.is_set():
        if not _abandoned.is_set():
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or none
                stream.flush()
        os._exit(code)
    sys.exit(code)
