"""Folders of data sets and runs: `./data` and `./runs`, unless set by environment variables."""

import os
from pathlib import Path


def data_root() -> Path:
    """The folder of raw and packed data: `$NEUSCALE_DATA`, else `./data`."""
    return Path(os.environ.get("NEUSCALE_DATA") or "data").expanduser()


def runs_root() -> Path:
    """The folder of runs: `$NEUSCALE_RUNS`, else `./runs`."""
    return Path(os.environ.get("NEUSCALE_RUNS") or "runs").expanduser()
