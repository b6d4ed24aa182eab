"""The tables of the README are made from run folders only."""

import copy
import csv
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from neuscale.config import compose_config
from runs.conftest import manifest_of

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in this checkout", allow_module_level=True)

REPLAY = {"of": "", "forced": [], "equal": True, "verdict": "equal", "first": None, "changed": []}

README = """# Title
before
<!-- table: experiments -->
| old |
<!-- end of table -->
after
"""


def write_run(folder: Path, name: str, seed: int, top1: float, *words: str, **fields: Any) -> None:
    """Write the manifest of a finished run."""
    whole = manifest_of(name)
    manifest = whole | {
        "started": f"2026-11-21T12:00:0{seed}+00:00",
        "seed": seed,
        "precision": "fp32",
        "packages": {"torch": "2.15.0"},
        "config": asdict(compose_config(["experiment=quickstart", f"run.seed={seed}", *words])),
        "machine": whole["machine"]
        | {"kind": "cpu", "cpu": "AMD EPYC", "device": "CPU, 2 threads", "processes": 2},
        "result": whole["result"]
        | {
            "last": {"top1": top1, "top5": 1.0, "loss": 1.0},
            "train_seconds": 90.0,
            "images_per_second": 1000.4,
        },
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "manifest.json").write_text(json.dumps(copy.deepcopy(manifest) | fields))


def script(name: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *map(str, words)], capture_output=True, text=True, check=False
    )


def rows(results: Path) -> list[dict[str, str]]:
    with (results / "experiments.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_become_rows_and_rows_the_readmes_table(tmp_path: Path) -> None:
    runs, results, readme = tmp_path / "runs", tmp_path / "results", tmp_path / "README.md"
    for seed, top1 in enumerate((0.88, 0.90, 0.92)):
        write_run(runs, f"s{seed}", seed, top1)
    write_run(runs, "changed", 0, 0.5, "optim.lr=1e-3")
    write_run(runs, "replayed", 0, 0.1, replay=REPLAY | {"of": "s0"})
    write_run(runs, "failed", 5, 0.1, status="failed")
    (runs / "broken").mkdir()
    (runs / "broken" / "manifest.json").write_text("{")
    done = script("experiments.py", runs, "--results", results)
    assert done.returncode == 0, done.stderr
    assert "broken/manifest.json: damaged" in done.stdout
    changed, plain = sorted(rows(results), key=lambda row: row["top1"])
    assert (plain["seeds"], plain["top1"], plain["top1_std"]) == ("3", "0.9000", "0.0200")
    assert (plain["changes"], plain["device_hours"]) == ("", "0.0500")
    assert (changed["changes"], changed["top1_std"]) == ("optim.lr=0.001", "")
    assert str(tmp_path) not in (results / "experiments.csv").read_text()

    other = tmp_path / "elsewhere"
    machine = {"kind": "cuda", "cpu": "x", "device": "NVIDIA H100", "processes": 1}
    write_run(other, "gpu", 0, 0.95, machine=manifest_of("gpu")["machine"] | machine)
    assert script("experiments.py", other, "--results", results).returncode == 0
    assert len(rows(results)) == 3, "the rows of other machines stay"

    readme.write_text(README)
    assert script("readme.py", readme, results).returncode == 0
    text = readme.read_text()
    assert "| quickstart | 2 × AMD EPYC, CPU, 2 threads, fp32 | 90.00 ± 2.00 | 3 | 90 s |" in text
    assert "| quickstart | NVIDIA H100, fp32 | 95.00 | 1 |" in text
    assert text.startswith("# Title\nbefore\n<!-- table: experiments -->\n| recipe |")
    assert text.endswith("<!-- end of table -->\nafter\n")
    assert "old" not in text
    assert script("readme.py", readme, results).returncode == 0
    assert readme.read_text() == text


def test_without_runs_and_without_a_place_it_says_so(tmp_path: Path) -> None:
    nothing = script("experiments.py", tmp_path, "--results", tmp_path)
    assert nothing.returncode == 1
    assert "no finished run" in nothing.stderr
    (tmp_path / "README.md").write_text("no markers")
    assert "has no '<!-- table: NAME -->'" in script("readme.py", tmp_path / "README.md", tmp_path).stderr
    assert (tmp_path / "README.md").read_text() == "no markers"
