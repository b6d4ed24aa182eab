"""Shared by the benchmarks: the CPU's name, and tables of results as CSV."""

import csv
import re
from pathlib import Path
from typing import Any

from neuscale.hardware import cpu_name as cpu_name

RESULTS = Path(__file__).parent / "results"


def write_table(name: str, rows: list[dict[str, str]], folder: Path = RESULTS) -> None:
    """Write and print `<folder>/<name>.csv`, with a column for each key of the rows."""
    path = folder / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path.read_text())


def named_for(name: str, device: Any) -> str:
    """Name of a device's table: `name` on a CPU, `name-<gpu>` on a GPU, so that both are kept."""
    if device.type != "cuda":
        return name
    import torch

    return f"{name}-{re.sub(r'[^a-z0-9]+', '-', torch.cuda.get_device_name(device).lower()).strip('-')}"
