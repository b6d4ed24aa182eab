"""Speed of a training step of our models, compared with torchvision's.

    .venv/bin/python benchmarks/step.py [--device cuda] [--precision bf16]

The models take turns; times are medians. Writes `benchmarks/results/step.csv`, or `step-<gpu>.csv`.
"""

import argparse
import warnings
from dataclasses import asdict

import torch
from table import cpu_name, named_for, write_table

from neuscale.benchmark.step import measure_steps
from neuscale.hardware import available_cores


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(available_cores())
    device = torch.device(given.device)
    machine = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()}, {available_cores()} cores"
    )
    rows = []
    for row in measure_steps(device, given.precision, given.batch, given.rounds, with_compile=True):
        values = {"machine": machine, "torch": torch.__version__, **asdict(row)}
        rows.append({k: f"{v:.3g}" if isinstance(v, float) else str(v or "") for k, v in values.items()})
        print(rows[-1], flush=True)
    write_table(named_for("step", device), rows)


if __name__ == "__main__":
    main()
