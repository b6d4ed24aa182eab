"""Errors of worker processes: only the first one is shown."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from neuscale.errors import UserError

# A launcher ends the other processes when the first one exits, so they wait until it has shown its error.
_PATIENCE = timedelta(seconds=5)


def show_once(show: Callable[[], None]) -> None:
    """Call `show`, unless another process of this run has already shown its error.

    Processes started by torchrun or `accelerate launch` share their launcher's store. Without such
    a store the error is shown: twice is better than never.
    """
    key = f"neuscale/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = _launchers_store()
        first = store is None or store.add(key, 1) == 1
        if store is not None and not first:
            store.wait([f"{key}/shown"], _PATIENCE)
            return
    except Exception:  # launcher or network gone, or the first process died before showing
        store = None
    show()
    if store is not None:
        store.set(f"{key}/shown", "1")


def _launchers_store() -> Any:
    """The store of the launcher's agent; None if there is none, or only one process."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() == "true"
    if not shared or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=_PATIENCE)


# Folder into which a worker of our launcher writes its error, instead of printing it.
REPORTS = "NEUSCALE_WORKER_REPORTS"


def report_to_launcher(error: UserError) -> bool:
    """Write a worker's error for `launch` to raise; return False if `launch` did not start this process."""
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


def _first_report(folder: Path) -> dict[str, Any] | None:
    """The earliest error report of the workers; later ones are often only consequences."""
    reports = [json.loads(path.read_text()) for path in folder.glob("[0-9]*")]
    return min(reports, key=lambda report: report["time"], default=None)
