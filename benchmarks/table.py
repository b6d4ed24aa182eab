"""What the benchmarks here share: the machine's name, and a table of results as CSV."""

import csv
from pathlib import Path


def cpu_name() -> str:
    """The processor as the system names it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write_table(name: str, rows: list[dict[str, str]]) -> None:
    """Writes and prints `results/<name>.csv`, a column for each key of the rows."""
    path = Path(__file__).parent / "results" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path.read_text())
