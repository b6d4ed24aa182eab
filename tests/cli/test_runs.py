"""`neuscale runs list`, `show`, `compare` and `prune`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from neuscale.runs.folder import RunFolder
from neuscale.runs.manifest import read_manifest, write_manifest
from neuscale.slurm.jobs import SubmittedJob

Command = Callable[..., Any]


def change(run: Path, **fields: Any) -> Path:
    """Change fields of a run's manifest; return the run."""
    write_manifest(run / "manifest.json", read_manifest(run / "manifest.json") | fields)
    return run


@pytest.fixture
def zoo(done: Path, runs: Path) -> Path:
    """A runs folder with one run of each state."""
    for name in ("killed", "failed", "broken", "empty", "newer"):
        shutil.copytree(done, runs / name)
    change(runs / "killed", status="running", result=None)
    change(runs / "failed", status="failed", error="train.batch: [red]no memory", result=None)
    (runs / "broken" / "manifest.json").write_text('{"status": "fini')
    for path in ("manifest.json", "metrics.jsonl"):
        (runs / "empty" / path).unlink()
    shutil.rmtree(runs / "empty" / "checkpoints")
    change(runs / "newer", version=99)
    (runs / "no run").mkdir()
    return runs


def test_every_state_is_listed(neuscale: Command, zoo: Path) -> None:
    with RunFolder(zoo / "killed").held():
        states = {row["name"]: row["state"] for row in neuscale("runs", "list", "--json").json["runs"]}
    expected = {"done": "finished", "killed": "running", "failed": "failed", "empty": "empty"}
    assert states == expected | {"broken": "damaged", "newer": "damaged"}
    said = neuscale("runs", "list")
    assert said.code == 0
    for name in states:
        assert name in said.out
    assert "stopped" in said.out, "killed, and its lock is free"
    assert "[red]no memory" in said.err
    assert "is of version 99, and this program reads 1 to 2" in said.words
    assert "broken/manifest.json: damaged" in said.words


def test_jobs_stand_among_the_runs(neuscale: Command, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A submitted run is listed before it has a folder and between two of its jobs."""
    submitted = [("waits", "pending"), ("killed", "requeued"), ("killed", "failed"), ("gone", "finished")]
    jobs = [
        SubmittedJob(str(20 - i), 3 if run == "waits" else None, run, state, "2026-01-01")
        for i, (run, state) in enumerate(submitted)
    ]
    monkeypatch.setattr("neuscale.slurm.jobs.submitted_jobs", lambda: jobs)
    rows = {row["name"]: row for row in neuscale("runs", "list", "--json").json["runs"]}
    assert (rows["waits"]["state"], rows["waits"]["note"]) == ("pending", "job 20_3")
    assert (rows["killed"]["state"], rows["killed"]["note"]) == ("requeued", "job 19")
    assert rows["done"]["state"] == "finished"
    assert "gone" not in rows
    assert "waits" in neuscale("runs", "list").out


def test_sorted_by_what_is_asked_for(neuscale: Command, done: Path, runs: Path) -> None:
    for name, top1 in (("low", 0.1), ("high", 0.9)):
        shutil.copytree(done, runs / name)
        (runs / name / "metrics.jsonl").write_text(
            json.dumps({"split": "val", "step": 5, "top1": top1, "top5": 1.0, "loss": 1 - top1}) + "\n"
        )
    (runs / "done" / "metrics.jsonl").unlink()
    change(runs / "done", result=None)

    def order(sort: str) -> list[str]:
        return [row["name"] for row in neuscale("runs", "list", "--sort", sort, "--json").json["runs"]]

    assert order("top1") == order("loss") == ["high", "low", "done"]
    assert order("name") == ["done", "high", "low"]
    assert neuscale("runs", "list", "--sort", "beauty").code == 2


def test_no_runs_yet_is_no_error(neuscale: Command) -> None:
    said = neuscale("runs", "list")
    assert (said.code, said.out) == (0, "")
    assert "no runs yet" in said.err


@pytest.mark.parametrize("command", ["show", "replay", "report", "compare"])
def test_what_is_no_run_is_one_clear_line(neuscale: Command, zoo: Path, command: str) -> None:
    expected = {
        "broken": ("damaged", 1),
        "newer": ("is of version 99", 1),
        "empty": ("has not started to train", 1),
        str(zoo / "no run"): ("no run in this folder", 2),
        "dune": ("Did you mean 'done'", 2),
    }
    for name, (words, code) in expected.items():
        said = neuscale("runs", command, name, *(["done"] if command == "compare" else []))
        assert (said.code, said.out) == (code, ""), name
        assert words in said.words
        assert "Traceback" not in said.err
        assert len(said.err.splitlines()) <= 2


def test_show_says_what_it_was(neuscale: Command, done: Path) -> None:
    said = neuscale("runs", "show", "done")
    manifest = read_manifest(done / "manifest.json")
    for words in ("finished", manifest["result"]["weights_sha256"], "15 steps", "step-00000015", "tiny"):
        assert words in said.out
    shown = neuscale("runs", "show", "done", "--json").json
    assert shown["config"]["train"]["epochs"] == 3
    assert [checkpoint["path"][-2:] for checkpoint in shown["checkpoints"]] == ["05", "10", "15"]
    assert sum(checkpoint["best"] for checkpoint in shown["checkpoints"]) == 1


def test_compare_shows_differences_first(
    neuscale: Command, train: Command, runs: Path, tmp_path: Path
) -> None:
    for name, lr in (("a", 1e-3), ("b", 1e-2), ("c", 1e-3)):
        words = ["train.log_every_steps=1", f"optim.lr={lr}", "train.epochs=2", f"run.name={name}"]
        assert train(*words, "tracking.trackers=[]").code == 0
    said = neuscale("runs", "compare", "a", "b", "c", "--png", str(tmp_path / "curves.png"))
    assert said.code == 0
    configuration, _, rest = said.out.partition("results")
    assert "optim.lr" in configuration
    assert "0.001" in configuration
    assert "optim.weight_decay" not in configuration
    assert "best top-1" in rest
    assert "step 10" in rest
    assert "█" in rest
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 800
    found = neuscale("runs", "compare", "a", "b", "c", "--json").json
    assert found["configuration"] == {"optim.lr": [0.001, 0.01, 0.001]}
    assert found["environment"] == {}
    assert "bitwise equal" in neuscale("runs", "compare", "a", "c").out
    assert neuscale("runs", "compare", "a").code == 2


def test_prune_says_first_and_keeps_best_and_last(neuscale: Command, done: Path) -> None:
    best = json.loads((done / "checkpoints" / "best.json").read_text())["checkpoint"]
    kept = {best, "step-00000015"}
    (done / "checkpoints" / ".partial-00000020").mkdir()
    before = sorted(path.name for path in done.glob("checkpoints/*"))
    said = neuscale("runs", "prune")
    assert said.code == 0
    assert "Nothing was removed" in said.err
    assert sorted(path.name for path in done.glob("checkpoints/*")) == before
    spare = {name for name in before if name.startswith("step-")} - kept
    assert spare
    for name in spare:
        assert name in said.out
    for name in kept:
        assert name not in said.out
    assert neuscale("runs", "prune", "--yes").code == 0
    assert {path.name for path in done.glob("checkpoints/*")} == kept | {"best.json"}
    assert neuscale("eval", "done", "--checkpoint", "best", "--json").json["samples"] == 21


def test_prune_takes_empty_and_failed_runs_and_no_other(neuscale: Command, zoo: Path) -> None:
    shutil.copytree(zoo / "failed", zoo / "failed early")
    shutil.rmtree(zoo / "failed early" / "checkpoints")
    with RunFolder(zoo / "killed").held():
        found = neuscale("runs", "prune", "--yes", "--json").json
        assert found["removed"]
        assert len(list((zoo / "killed").glob("checkpoints/step-*"))) == 3, "it is being trained"
    there = {path.name for path in zoo.iterdir()}
    assert there == {"done", "killed", "failed", "broken", "newer", "no run"}
    assert len(list((zoo / "newer").glob("checkpoints/step-*"))) == 3
    said = neuscale("runs", "prune", "--failed")
    assert "best and last among them" in said.out
    assert (zoo / "failed").exists()
    assert neuscale("runs", "prune", "--failed", "--yes").code == 0
    assert not (zoo / "failed").exists()


def test_prune_keeps_milestones(neuscale: Command, done: Path) -> None:
    config = read_manifest(done / "manifest.json")["config"]
    change(done, config=config | {"checkpoint": config["checkpoint"] | {"milestones": [1, 2]}})
    assert neuscale("runs", "prune", "--json").json["folders"] == []
