"""The table of a sweep's runs: the best one first, each value under its own heading."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuscale.cli import run
from neuscale.errors import EXIT_FAILED, EXIT_RESUME
from neuscale.sweep import processes
from neuscale.sweep.processes import Swept

WORDS = ["optim.lr=0.1,0.2", "run.seed=3,4", "--name", "s"]
# By name: status, best and last top-1, last loss, steps; None for a run that has not started.
RUNS: dict[str, tuple[str, float, float, float, int] | None] = {
    "s-lr0.1-seed3": ("finished", 0.4, 0.3, 2.25, 40),
    "s-lr0.1-seed4": ("finished", 0.9, 0.2, 1.5, 50),
    "s-lr0.2-seed3": ("stopped", 0.6, 0.6, 1.75, 1030),
    "s-lr0.2-seed4": None,
}


@pytest.fixture
def sweep(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], str | None], None]:
    """A function that fakes the next sweep: RUNS, with the given failed runs and stop signal."""

    def ends(failed: list[str], stopped_by: str | None) -> None:
        def run_sweep(*_: Any) -> Swept:
            for name, told in RUNS.items():
                if told is None:
                    continue
                status, best, top1, loss, steps = told
                last = {"top1": top1, "top5": 1.0, "loss": loss}
                (runs / name).mkdir(parents=True)
                result = {"best_top1": best, "last": last, "steps": steps}
                manifest = {"status": status, "result": result}
                (runs / name / "manifest.json").write_text(json.dumps(manifest))
            return Swept(failed, stopped_by)

        monkeypatch.setattr(processes, "run_sweep", run_sweep)
        monkeypatch.setattr(processes, "choose_places", lambda *_, **__: [{}])

    return ends


def test_the_runs_of_a_sweep_are_ranked_by_their_best_evaluation(
    sweep: Callable[..., None], runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep([], "SIGTERM")
    assert run(["sweep", *WORDS]) == EXIT_RESUME
    said = capfd.readouterr()
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in said.out.splitlines()
        if "s-" in line
    ]
    assert rows == [
        ["s-lr0.1-seed4", "0.1", "4", "top-1 90.00%", "1.5000", "50", ""],
        ["s-lr0.2-seed3", "0.2", "3", "top-1 60.00%", "1.7500", "1,030", "stopped"],
        ["s-lr0.1-seed3", "0.1", "3", "top-1 40.00%", "2.2500", "40", ""],
        ["s-lr0.2-seed4", "0.2", "4", "", "", "", "not started"],
    ]
    (heading,) = [line for line in said.out.splitlines() if "last loss" in line]
    names = [cell.strip() for cell in heading.strip("┃").split("┃")]
    assert names == ["run", "optim.lr", "run.seed", "best", "last loss", "steps", ""]
    assert "stopped by SIGTERM; every run that has started is saved." in said.err
    assert "neuscale sweep --resume s" in said.err


def test_a_sweep_says_which_runs_failed_and_exits_so(
    sweep: Callable[..., None], runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep(["s-lr0.1-seed3"], None)
    assert run(["sweep", *WORDS, "--json"]) == EXIT_FAILED
    said = capfd.readouterr()
    assert "failed: s-lr0.1-seed3. Try these again with: neuscale sweep --resume s" in said.err
    found = json.loads(said.out)
    assert found["sweep"] == str(runs / "s")
    assert [(row["name"], row["status"]) for row in found["runs"]] == [
        ("s-lr0.1-seed4", "finished"),
        ("s-lr0.2-seed3", "stopped"),
        ("s-lr0.1-seed3", "failed"),
        ("s-lr0.2-seed4", "not started"),
    ]
    assert found["runs"][0]["values"] == {"optim.lr": "0.1", "run.seed": "4"}
    assert found["runs"][0]["log"] == str(runs / "s" / "s-lr0.1-seed4.log")


@pytest.mark.parametrize(
    ("failed", "stopped_by", "code"),
    [
        ([], None, EXIT_RESUME),
        (["s-lr0.1-seed3"], "SIGINT", EXIT_RESUME),
        (["s-lr0.1-seed3"], None, EXIT_FAILED),
    ],
)
def test_a_sweep_with_runs_that_are_not_finished_is_not_a_success(
    failed: list[str], stopped_by: str | None, code: int, sweep: Callable[..., None], runs: Path
) -> None:
    sweep(failed, stopped_by)
    assert run(["sweep", *WORDS]) == code
    assert (runs / "s" / "sweep.json").exists(), "for --resume"
