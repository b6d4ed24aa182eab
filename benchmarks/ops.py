"""Speed of the native ops, compared with eager torch, torch.compile and a copy of the same bytes.

    .venv/bin/python benchmarks/ops.py --output benchmarks/results/ops-cpu.json
    .venv/bin/python benchmarks/ops.py --keep-memory --output benchmarks/results/ops-cpu-kept.json

Requires neuscale_ops (`make ops`) and runs on CPU or GPU. The implementations take turns over several
rounds; the table has medians in milliseconds, and the times of the others divided by ours. By default
the C library returns the memory of large results to the system and gets new pages for the next; with
`--keep-memory` it keeps them, as in `neuscale train` on a CPU.
"""

import argparse
import json
from pathlib import Path

import torch
from table import cpu_name

from neuscale.benchmark.ops import measure_ops, report, table_lines
from neuscale.hardware import available_cores, keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--keep-memory", action="store_true", help="as neuscale train does on a CPU")
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(available_cores())
    device = torch.device(given.device)
    if given.keep_memory and not keep_freed_memory():
        parser.error("--keep-memory: needs glibc, and none of its MALLOC_… settings in the environment")
    measured = []
    for case in measure_ops(device, given.rounds, given.only):
        measured.append(case)
        print(table_lines([case])[-1], flush=True)
    print("\n" + "\n".join(table_lines(measured)))
    if given.output:
        found = report(device, measured)
        if device.type == "cpu":
            found |= {"device": cpu_name(), "memory": "kept" if given.keep_memory else "given back"}
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(found, indent=2) + "\n")
        print(given.output)


if __name__ == "__main__":
    main()
