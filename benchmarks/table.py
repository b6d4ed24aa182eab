"""What the benchmarks here share: the machine's name, and a table of results as CSV."""

import csv
from pathlib import Path

from neuscale.runs.environment import cpu_name as cpu_name

RESULTS = Path(__file__).parent / "results"


def write_table(name: str, rows: list[dict[str, str]], folder: Path = RESULTS) -> None:
    """Writes and prints `results/<name>.csv`, a column for each key of the rows."""
    path = folder / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path.read_text())
