"""The folder of a sweep: its list of runs, its lock for a single process, and resuming it."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from neuscale.cli import run
from neuscale.errors import UsageError, UserError
from neuscale.sweep import processes
from neuscale.sweep.folder import Sweep, open_sweep, plan_sweep, store_sweep
from neuscale.sweep.processes import Swept


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def lists(count: int) -> list[list[str]]:
    return [["experiment=quickstart", f"run.seed={seed}"] for seed in range(count)]


def store(name: str, statuses: Sequence[str], age: float = 0) -> Sweep:
    """Store a sweep whose runs have these states and whose list is `age` seconds old."""
    sweep = plan_sweep(lists(len(statuses)), ["run.seed"], name)
    store_sweep(sweep, ["neuscale", "sweep"])
    for planned, status in zip(sweep.runs, statuses, strict=True):
        planned.folder.path.mkdir()
        planned.folder.manifest_file.write_text(json.dumps({"status": status}))
    written = sweep.path.stat().st_mtime - age
    os.utime(sweep.path / "sweep.json", (written, written))
    return sweep


def test_runs_are_called_what_differs_between_them() -> None:
    sweep = plan_sweep([["run.seed=0", "optim.lr=0.1"], ["run.seed=0", "optim.lr=0.2"]], ["optim.lr"], "s")
    assert [planned.name for planned in sweep.runs] == ["s-lr0.1", "s-lr0.2"]
    assert [planned.words[1] for planned in sweep.runs] == ["optim.lr=0.1", "optim.lr=0.2"]
    assert not sweep.path.exists()


@pytest.mark.parametrize(
    ("count", "names"), [(2, ["s-0", "s-1"]), (10, ["s-0", "s-9"]), (11, ["s-00", "s-10"])]
)
def test_long_names_are_numbers_that_sort_as_the_runs_do(count: int, names: list[str]) -> None:
    long = [["experiment=quickstart", f"model.weights={'a' * 100}{i}"] for i in range(count)]
    found = [planned.name for planned in plan_sweep(long, ["model.weights"], "s").runs]
    assert [found[0], found[-1]] == names
    assert found == sorted(found)


def test_the_list_is_what_a_resumed_sweep_goes_on_with(runs: Path) -> None:
    planned = plan_sweep(lists(3), ["run.seed"], "s")
    store_sweep(planned, ["neuscale", "sweep", "run.seed=0,1,2"])
    content = json.loads((runs / "s" / "sweep.json").read_text())
    assert content["command"] == ["neuscale", "sweep", "run.seed=0,1,2"]
    assert content["fields"] == ["run.seed"]
    assert content["runs"][1] == {"name": "s-seed1", "words": ["experiment=quickstart", "run.seed=1"]}
    found = open_sweep("s")
    assert (found.path, found.fields, found.runs) == (runs / "s", ["run.seed"], planned.runs)
    assert open_sweep(str(runs / "s")).runs == planned.runs


def test_without_a_name_the_newest_that_is_not_finished_goes_on() -> None:
    store("newest", ["finished", "finished"])
    store("newer", ["finished", "stopped"], age=100)
    store("old", ["finished", "stopped"], age=200)
    assert open_sweep(None).name == "newer"


def test_where_all_are_finished_none_goes_on() -> None:
    store("one", ["finished", "finished"])
    with pytest.raises(UsageError, match=r"no sweep to resume \(existing: one\)"):
        open_sweep(None)
    assert open_sweep("one").name == "one", "one that is named may"


def test_a_list_that_is_none_is_named(runs: Path) -> None:
    (runs / "s").mkdir(parents=True)
    (runs / "s" / "sweep.json").write_text('{"runs": [{"name": "s-seed0"}]}')
    with pytest.raises(UserError, match=r"s/sweep\.json: not the list of a sweep"):
        open_sweep("s")


@pytest.mark.parametrize("taken", ["s", "s-seed1"])
def test_a_folder_that_is_there_is_left_alone(runs: Path, taken: str) -> None:
    (runs / taken).mkdir(parents=True)
    with pytest.raises(UsageError, match=rf"{taken}: already exists\.\nChoose another `name`"):
        plan_sweep(lists(2), ["run.seed"], "s")


def test_a_sweep_of_that_name_is_pointed_out() -> None:
    store("s", ["finished", "finished"])
    with pytest.raises(UsageError, match="neuscale sweep --resume s; or choose another `name`"):
        plan_sweep(lists(2), ["run.seed"], "s")


def test_a_value_that_only_a_later_run_has_is_checked_too() -> None:
    bad = [["run.seed=0", "optim.lr=0.5"], ["run.seed=1", "optim.lr=0.5"], ["run.seed=1", "optim.lr=fast"]]
    with pytest.raises(UsageError, match=r"optim\.lr=fast: expected a number"):
        plan_sweep(bad, ["run.seed", "optim.lr"], "s")


def test_one_process_at_a_time_runs_a_sweep() -> None:
    store("s", ["stopped", "stopped"])
    refused = pytest.raises(UsageError, match="s: another process runs this sweep")
    with open_sweep("s").held(), refused, open_sweep("s").held():
        pass
    with open_sweep("s").held():
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_the_command_keeps_others_from_its_sweep_and_not_longer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], resume: bool
) -> None:
    """Two commands would train the same runs into the same folders."""
    words = ["sweep", "run.seed=0,1", "run.device=cpu", "--name", "s"]
    if resume:
        store("s", ["stopped", "stopped"])
        words = ["sweep", "--resume", "s"]
    seconds: list[int] = []

    def second(*_: Any) -> Swept:
        monkeypatch.setattr(processes, "run_sweep", lambda *_: Swept([], None))
        seconds.append(run(["sweep", "--resume", "s"]))
        return Swept([], None)

    monkeypatch.setattr(processes, "gpu_count", lambda: 0)
    monkeypatch.setattr(processes, "run_sweep", second)
    assert run(words) == 75
    assert seconds == [2]
    assert "another process runs this sweep" in " ".join(capfd.readouterr().err.split())
    assert run(["sweep", "--resume", "s"]) == 75


def test_the_command_that_made_a_sweep_is_kept(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["neuscale", "sweep", "run.seed=0,1"])
    called: list[tuple[list[str], int]] = []

    def note(sweep: Sweep, places: list[dict[str, str]], _progress: object) -> Swept:
        called.append(([planned.name for planned in sweep.runs], len(places)))
        return Swept([], None)

    monkeypatch.setattr(processes, "run_sweep", note)
    assert run(["sweep", "run.seed=0,1", "run.device=cpu", "--name", "s", "--jobs", "3"]) == 75
    assert json.loads((runs / "s" / "sweep.json").read_text())["command"][1:] == ["sweep", "run.seed=0,1"]
    assert called == [(["s-seed0", "s-seed1"], 3)]
