"""Duration of each stage of continuous integration on this machine, from the output of `.ci/run`.

    .ci/run 2>&1 | tee ci.log && .venv/bin/python benchmarks/stages.py ci.log

Writes `benchmarks/results/ci.csv`.
"""

import re
import sys
from pathlib import Path

from table import cpu_name, write_table

from neuscale.hardware import available_cores

STAGE = re.compile(r"^== ([\w-]+)$(.*?)^== \1: (\d+) s$", re.MULTILINE | re.DOTALL)
# Last line of pytest, with the number of passed tests.
SUMMARY = re.compile(r"(\d+) passed.* in [\d.]+s")


def main(log: Path) -> None:
    """Write a row for each finished stage."""
    machine = f"{cpu_name()}, {available_cores()} cores"
    rows = []
    for name, said, seconds in STAGE.findall(log.read_text()):
        passed = sum(int(count) for count in SUMMARY.findall(said))
        row = {"machine": machine, "stage": name, "seconds": seconds}
        rows.append(row | {"tests_passed": str(passed or "")})
    if not rows:
        raise SystemExit(f"{log}: no stage of .ci/run came to its end there.")
    write_table("ci", rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
