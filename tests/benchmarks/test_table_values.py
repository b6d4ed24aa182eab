"""The README's tables show each number of the results in its own column and unit."""

import csv
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from neuscale.runs.manifest import write_manifest
from runs.conftest import manifest_of

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in this checkout", allow_module_level=True)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The benchmark scripts as modules; they import each other, so their folder is on sys.path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.delitem(sys.modules, "table", raising=False)
        yield {name: load(name) for name in ("experiments", "readme", "table")}
        sys.modules.pop("table", None)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def write(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("name", "row", "head", "shown"),
    [
        (
            "step",
            {"model": "m", "side": "ours", "images_per_second": "1234.6", "ratio": "1.5", "x": "9"},
            ["model", "side", "img/s", "ratio"],
            ["m", "ours", "1,235", "1.5"],
        ),
        (
            "loop",
            {"over_bare": "1.02", "loop": "l", "ms_per_step": "3.25"},
            ["loop", "ms a step", "over a bare loop"],
            ["l", "3.25", "1.02"],
        ),
        (
            "loader",
            {"ratio": "2.5", "images_per_second": "12345", "loader": "l"},
            ["loader", "img/s", "ratio"],
            ["l", "12,345", "2.5"],
        ),
        ("images", {"part": "p", "megabytes": "1234.56"}, ["part", "MB"], ["p", "1,234.6"]),
        (
            "ci",
            {"stage": "s", "tests_passed": "77", "seconds": "90"},
            ["stage", "minutes", "tests passed"],
            ["s", "1.5", "77"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_column_is_that_of_its_title(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    name: str,
    row: dict[str, str],
    head: list[str],
    shown: list[str],
) -> None:
    write(tmp_path, name, [row])
    titles, line, values = cells(scripts["readme"].table(name, tmp_path))
    assert (titles, line, values) == (head, ["---"] * len(head), shown)


def test_ops_have_time_and_memory_beside_each_other(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    for file, eager, compiled in (("ops-cpu", 2.0, 3.0), ("ops-cpu-kept", 4.0, 5.0)):
        case = {"case": "gelu", "eager_over_ours": eager, "compile_over_ours": compiled}
        (tmp_path / f"{file}.json").write_text(json.dumps({"cases": [case]}))
    head, _, values = cells(scripts["readme"].table("ops-cpu", tmp_path))
    titles = ["op", "over eager", "over torch.compile", "memory kept: over eager", "over torch.compile"]
    assert head == titles
    assert values == ["gelu", "2.00×", "3.00×", "4.00×", "5.00×"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ("599.4", "599 s"),
        ("600", "10 min"),
        ("35999", "600 min"),
        ("36000", "10.0 h"),
        ("99000", "27.5 h"),
    ],
)
def test_times_of_training(scripts: dict[str, ModuleType], seconds: str, words: str) -> None:
    assert scripts["readme"].duration({"train_seconds": seconds}) == words


def test_an_experiment_in_the_readme(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    row = {
        "experiment": "vit",
        "changes": "optim.lr=1",
        "machine": "H100",
        "torch": "2",
        "precision": "bf16",
        "seeds": "3",
        "top1": "0.91234",
        "top1_std": "0.00456",
        "loss": "0.5",
        "train_seconds": "1200",
        "images_per_second": "9876",
        "device_hours": "1.23456",
    }
    write(tmp_path, "experiments", [row])
    head, _, values = cells(scripts["readme"].table("experiments", tmp_path))
    assert head == ["recipe", "machine", "top-1, %", "seeds", "training", "img/s", "device-hours"]
    assert values == ["vit optim.lr=1", "H100, bf16", "91.23 ± 0.46", "3", "20 min", "9,876", "1.23"]
    assert scripts["readme"].percent({"top1": "0.5", "top1_std": ""}) == "50.00"


def manifest(seed: int, started: str, last: float, seconds: float, speed: float) -> dict[str, Any]:
    """Manifest of a run whose best top-1 is not its last."""
    return {
        "seed": seed,
        "started": started,
        "machine": {"processes": 4, "kind": "cuda", "cpu": "EPYC", "device": "H100"},
        "result": {
            "best_top1": 0.99,
            "last": {"top1": last, "top5": 1.0, "loss": 2 * last},
            "train_seconds": seconds,
            "images_per_second": speed,
        },
    }


def test_a_row_is_over_the_newest_run_of_each_seed(scripts: dict[str, ModuleType]) -> None:
    """The mean of 0.5, 0.7 and 0.9 is 0.7, their sample standard deviation is 0.2."""
    manifests = [
        manifest(0, "2026-02-01", 0.5, 1000.0, 100.0),
        manifest(1, "2026-01-02", 0.7, 2000.0, 200.0),
        manifest(0, "2026-01-01", 0.1, 9.0, 9.0),  # an older run of seed 0, which does not count
        manifest(2, "2026-01-03", 0.9, 4200.0, 303.0),
    ]
    found = scripts["experiments"].row(("vit", "", "4 × H100", "2.15", "bf16"), manifests)
    assert found == {
        "experiment": "vit",
        "changes": "",
        "machine": "4 × H100",
        "torch": "2.15",
        "precision": "bf16",
        "seeds": "3",
        "top1": "0.7000",
        "top1_std": "0.2000",
        "loss": "1.4000",
        "train_seconds": "2400.0",
        "images_per_second": "201",
        "device_hours": "2.6667",  # four devices for 40 minutes
    }


def test_only_finished_runs_of_a_recipe_are_gathered(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = manifest_of("x", experiment="vit")
    replay = {"of": "x", "forced": [], "equal": True, "verdict": "equal", "changed": []}
    runs = {
        "good": base,
        "stopped": base | {"status": "stopped"},
        "own": base | {"config": {"experiment": None}},
        "replayed": base | {"replay": replay},
        "newer": base | {"version": 9},
    }
    for name, content in runs.items():
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name / "manifest.json", {**content, "name": name})
    found = scripts["experiments"].finished([tmp_path])
    assert [one["name"] for one in found] == ["good"]
    assert "version 9" in capsys.readouterr().out
