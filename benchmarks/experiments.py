"""Results over seeds, from finished run folders, with a row for each experiment and machine.

    neuscale train experiment=quickstart run.seed=0      # and 1, 2, …
    .venv/bin/python benchmarks/experiments.py           # of $NEUSCALE_RUNS, else ./runs
    make results                                         # the same, and the README's tables from it

Writes `benchmarks/results/experiments.csv`, and keeps its rows of other experiments and machines.
Runs that differ in more than their seed get different rows; `changes` lists the fields that differ
from the recipe. Replays are left out, because they would count a seed twice.
"""

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from table import RESULTS, write_table

from neuscale.config import compose_config
from neuscale.errors import UserError
from neuscale.paths import runs_root
from neuscale.runs.differences import changing_fields
from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import load_manifest

KEY = ("experiment", "changes", "machine", "torch", "precision")


def finished(folders: Iterable[Path]) -> Iterable[dict[str, Any]]:
    """Manifests of the finished runs of a recipe in `folders`, without replays."""
    for folder in folders:
        for path in sorted(folder.glob("*/manifest.json")):
            try:
                manifest = load_manifest(RunFolder(path.parent).manifest_file)
            except UserError as error:
                print(f"left out: {error.problem}")
                continue
            complete = manifest["status"] == "finished" and (manifest["config"] or {}).get("experiment")
            if complete and "replay" not in manifest:
                yield manifest


def key_of(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Key of a run's row, with the fields KEY."""
    config, machine = manifest["config"], manifest["machine"]
    recipe = changing_fields(asdict(compose_config([f"experiment={config['experiment']}"]))) or {}
    own = changing_fields(config) or {}
    changes = [f"{name}={value}" for name, value in own.items() if recipe.get(name) != value]
    count = f"{machine['processes']} × " if machine["processes"] > 1 else ""
    cpu = f"{machine['cpu']}, " if machine["kind"] == "cpu" and machine["cpu"] else ""
    return (
        config["experiment"],
        " ".join(change for change in changes if not change.startswith("run.seed=")),
        f"{count}{cpu}{machine['device']}",
        manifest["packages"].get("torch", ""),
        manifest["precision"],
    )


def row(key: tuple[str, ...], manifests: list[dict[str, Any]]) -> dict[str, str]:
    """Mean and spread over the runs of a key; of several runs with one seed, only the newest counts."""
    newest = {m["seed"]: m for m in sorted(manifests, key=lambda m: str(m["started"]))}
    results = [m["result"] for m in newest.values()]
    top1 = [result["last"]["top1"] for result in results]
    seconds = statistics.fmean(result["train_seconds"] for result in results)
    processes = manifests[0]["machine"]["processes"]
    return {
        **dict(zip(KEY, key, strict=True)),
        "seeds": str(len(results)),
        "top1": f"{statistics.fmean(top1):.4f}",
        "top1_std": f"{statistics.stdev(top1):.4f}" if len(top1) > 1 else "",
        "loss": f"{statistics.fmean(result['last']['loss'] for result in results):.4f}",
        "train_seconds": f"{seconds:.1f}",
        "images_per_second": f"{statistics.fmean(result['images_per_second'] for result in results):.0f}",
        "device_hours": f"{seconds * processes / 3600:.4f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="of runs; else $NEUSCALE_RUNS or ./runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where experiments.csv is")
    arguments = parser.parse_args()
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for manifest in finished(arguments.folders or [runs_root()]):
        groups[key_of(manifest)].append(manifest)
    file = arguments.results / "experiments.csv"
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    if file.exists():
        with file.open(newline="") as stream:
            rows = {tuple(known[name] for name in KEY): known for known in csv.DictReader(stream)}
    rows |= {key: row(key, manifests) for key, manifests in groups.items()}
    if not rows:
        raise SystemExit("There is no finished run of a recipe to gather.")
    write_table("experiments", [rows[key] for key in sorted(rows)], arguments.results)


if __name__ == "__main__":
    main()
