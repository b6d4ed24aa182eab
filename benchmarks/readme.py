"""Write the README's tables, between their markers, from the files in results/.

    .venv/bin/python benchmarks/readme.py [README [RESULTS]]       # make results

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from table import RESULTS

Row = dict[str, str]
Columns = dict[str, Callable[[Row], str]]

README = Path(__file__).parent.parent / "README.md"
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def percent(row: Row) -> str:
    """Mean ± standard deviation of top-1, in %."""
    spread = f" ± {100 * float(row['top1_std']):.2f}" if row["top1_std"] else ""
    return f"{100 * float(row['top1']):.2f}{spread}"


def duration(row: Row) -> str:
    """Training time in seconds, minutes or hours."""
    seconds = float(row["train_seconds"])
    if seconds < 600:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 36000 else f"{seconds / 3600:,.1f} h"


# Columns of each table, by the name of its file: titles, and functions from a row to a cell.
TABLES: dict[str, Columns] = {
    "experiments": {
        "recipe": lambda row: " ".join([row["experiment"], row["changes"]]).strip(),
        "machine": lambda row: f"{row['machine']}, {row['precision']}",
        "top-1, %": percent,
        "seeds": lambda row: row["seeds"],
        "training": duration,
        "img/s": lambda row: f"{int(row['images_per_second']):,}",
        "device-hours": lambda row: f"{float(row['device_hours']):.3g}",
    },
    "step": {
        "model": lambda row: row["model"],
        "side": lambda row: row["side"],
        "img/s": lambda row: f"{float(row['images_per_second']):,.0f}",
        "ratio": lambda row: row["ratio"],
    },
    "busy": {
        "loop": lambda row: row["loop"],
        "batch": lambda row: row["batch_size"],
        "busy cores": lambda row: row["busy_cores"],
        "img/s": lambda row: f"{int(row['images_per_second']):,}",
        "of idle": lambda row: row["of_idle"],
    },
    "serve": {
        "server": lambda row: row["what"],
        "clients": lambda row: row["clients"],
        "p50, ms": lambda row: row["p50_ms"],
        "p99, ms": lambda row: row["p99_ms"],
        "img/s": lambda row: f"{int(row['images_per_second']):,}",
    },
    "loop": {
        "loop": lambda row: row["loop"],
        "ms a step": lambda row: row["ms_per_step"],
        "over a bare loop": lambda row: row["over_bare"],
    },
    "prepare": {
        "way": lambda row: row["way"],
        "on": lambda row: row["file_system"],
        "images": lambda row: f"{int(row['images']):,}",
        "s": lambda row: row["seconds"],
        "ratio": lambda row: row["ratio"],
        "peak MB": lambda row: row["peak_memory_mb"],
    },
    "loader": {
        "loader": lambda row: row["loader"],
        "img/s": lambda row: f"{int(row['images_per_second']):,}",
        "ratio": lambda row: row["ratio"],
    },
    "images": {
        "part": lambda row: row["part"],
        "MB": lambda row: f"{float(row['megabytes']):,.1f}",
    },
    "ci": {
        "stage": lambda row: row["stage"],
        "minutes": lambda row: f"{float(row['seconds']) / 60:.1f}",
        "tests passed": lambda row: row["tests_passed"],
    },
    "ops-cpu": {
        "op": lambda row: row["case"],
        "over eager": lambda row: f"{float(row['eager']):.2f}×",
        "over torch.compile": lambda row: f"{float(row['compile']):.2f}×",
        "memory kept: over eager": lambda row: f"{float(row['eager, kept']):.2f}×",
        "over torch.compile ": lambda row: f"{float(row['compile, kept']):.2f}×",
    },
}


def rows_of(name: str, results: Path) -> list[Row]:
    """Rows of a table's CSV; for ops-cpu, speed ratios from its two JSON files."""
    if name != "ops-cpu":
        with (results / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    given_back, kept = (
        json.loads((results / f"{file}.json").read_text())["cases"] for file in (name, f"{name}-kept")
    )
    return [
        {
            "case": case["case"],
            **{side: case[f"{side}_over_ours"] for side in ("eager", "compile")},
            **{f"{side}, kept": beside[f"{side}_over_ours"] for side in ("eager", "compile")},
        }
        for case, beside in zip(given_back, kept, strict=True)
    ]


def table(name: str, results: Path) -> str:
    """Table of results in Markdown."""
    if name not in TABLES:
        raise SystemExit(f"table: {name}: known are {', '.join(TABLES)}")
    rows = rows_of(name, results)
    columns = TABLES[name]
    lines = [list(columns), *([make(row) for make in columns.values()] for row in rows)]
    head, *body = [f"| {' | '.join(cells)} |\n" for cells in lines]
    return "".join([head, "|---" * len(columns) + "|\n", *body])


def main(readme: Path, results: Path) -> None:
    """Replace the marked tables of `readme` by those from the files in `results`."""
    text = readme.read_text()
    found = MARKED.findall(text)
    if not found:
        raise SystemExit(f"{readme.name} has no '<!-- table: NAME -->' … '<!-- end of table -->'")
    readme.write_text(MARKED.sub(lambda match: f"{match[1]}{table(match[2], results)}{match[3]}", text))
    print(f"{readme.name}: {', '.join(name for _, name, _ in found)}")


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    main(given[0] if given else README, given[1] if len(given) > 1 else RESULTS)
