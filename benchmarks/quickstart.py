"""Accuracy, training time and throughput of the quickstart over several seeds, and a plot of its curves.

    make setup && .venv/bin/python benchmarks/quickstart.py --seeds 3

Runs the `neuscale` command as a user does; nothing else should run on the machine. Writes
`benchmarks/results/quickstart.csv`, one row per seed, and `docs/quickstart.png`.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from curves import draw
from table import cpu_name, write_table

from neuscale.program import program

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/quickstart.png"


def train(seed: int, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Run one quickstart; return (result, curves, manifest)."""
    words = ["train", "experiment=quickstart", f"run.seed={seed}", f"run.name=seed{seed}", "--json"]
    done = subprocess.run(
        program(*words),
        env={**os.environ, "NEUSCALE_RUNS": str(folder)},
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
    )
    run = folder / f"seed{seed}"
    curves = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.loads(done.stdout), curves, json.loads((run / "manifest.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            result, curves, manifest = train(seed, Path(folder))
            rows.append(
                {
                    "experiment": "quickstart",
                    "machine": f"{cpu_name()}, {manifest['machine']['device']}",
                    "torch": manifest["packages"]["torch"],
                    "precision": manifest["precision"],
                    "seed": str(seed),
                    "top1": f"{result['last']['top1']:.4f}",
                    "loss": f"{result['last']['loss']:.4f}",
                    "train_seconds": f"{result['train_seconds']:.1f}",
                    "images_per_second": f"{result['images_per_second']:.0f}",
                }
            )
            if seed == 0:
                draw(curves, PICTURE)
    write_table("quickstart", rows)


if __name__ == "__main__":
    main()
