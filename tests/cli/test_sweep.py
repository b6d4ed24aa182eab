"""`neuscale sweep` with real trainings: failed, stopped, killed and resumed runs."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import ENDLESS, TINY

SHORT = [*TINY, "train.epochs=2", "tracking.trackers=[]"]


def status(run: Path) -> str:
    file = run / "manifest.json"
    return json.loads(file.read_text())["status"] if file.exists() else "not started"


def test_a_failed_run_is_named_and_the_others_are_ranked(start: Callable[..., Any], runs: Path) -> None:
    """`--resume` then tries the failed run again and leaves the others unchanged."""
    words = ["model.patch_size=1,2,3", "--name", "s", "--jobs", "2", "--json"]
    said = start("sweep", *SHORT, *words).end(120)
    assert said.code == 1, said.err
    rows = said.json["runs"]
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]
    assert rows[0]["best_top1"] >= rows[1]["best_top1"]
    assert {row["name"] for row in rows[:2]} == {"s-patch_size1", "s-patch_size2"}
    assert rows[2]["values"] == {"model.patch_size": "3"}
    assert (
        "s-patch_size3 failed (model: an image of 8 pixels does not divide into patches of 3)" in said.words
    )
    assert "sweep --resume s" in said.words
    assert "does not divide into patches" in (runs / "s" / "s-patch_size3.log").read_text()
    before = (runs / "s-patch_size1" / "manifest.json").read_bytes()
    again = start("sweep", "--resume", "s").end(120)
    assert again.code == 1 and "2 of 3 runs are finished" in again.words
    assert (runs / "s-patch_size1" / "manifest.json").read_bytes() == before
    lines = [line for line in again.out.splitlines() if "s-" in line]
    assert "s-patch_size1" in lines[0] or "s-patch_size2" in lines[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_or_killed_goes_on(
    start: Callable[..., Any], runs: Path, number: int
) -> None:
    """The current run saves; after `--resume` all runs have trained all their steps."""
    steps = ["train.max_steps=300", *ENDLESS, "checkpoint.every_steps=21"]
    process = start("sweep", *TINY, *steps, "run.seed=0,1", "--name", "s")
    process.until(lambda: list(runs.glob("s-seed0/checkpoints/step-*")))
    children = process.workers()
    assert len(children) == 1
    process.send(number)
    said = process.end()
    psutil.wait_procs(children, timeout=20)
    assert status(runs / "s-seed0") == "stopped"
    if number == signal.SIGINT:
        assert said.code == 75, said.err
        assert "stopped by SIGINT; every run that has started is saved." in said.words
        assert "Resume with: neuscale sweep --resume s" in said.words
    again = start("sweep", "--resume", "--json").end(120)
    assert again.code == 0, again.err
    assert [(row["status"], row["steps"]) for row in again.json["runs"]] == [("finished", 300)] * 2
    manifest = json.loads((runs / "s-seed0" / "manifest.json").read_text())
    assert len(manifest["resumed"]) == 1
    assert not json.loads((runs / "s-seed1" / "manifest.json").read_text())["resumed"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["optim.lrr=1,2"], "optim.lrr: there is no such field"),
        (["optim.lr=1e-3,-1"], "optim.lr=-1.0: expected more than 0"),
        (["model=swin_nano,swin_tt"], "there is no such model preset"),
        (["model=swin_nano,vit_ti4", "model.window_size=2"], "vit has no such field"),
        (["optim.lr=1e-3"], "this is one run"),
        ([], "this is one run"),
        (["run.seed=range(0,2000)"], "make 2,000 runs, more than 1,000"),
        (["run.seed=0,1", "run.name=x"], "a sweep names its runs"),
        (["run.seed=0,1", "--name", "a/b"], "is not a valid folder name"),
        (["optim.lr=interval(1e-4,1e-2)"], "Set --random to the number of draws"),
        (["quickstart"], "is not of the form field=value"),
        (["--resume"], "there is no sweep to resume"),
        (["--resume", "nope"], "nope: there is no such sweep"),
    ],
)
def test_what_cannot_be_swept_is_said_before_anything_begins(
    neuscale: Callable[..., Any], runs: Path, words: list[str], problem: str
) -> None:
    said = neuscale("sweep", *words)
    assert (said.code, said.out) == (2, "")
    assert problem in said.words
    assert not runs.exists()


def test_a_dry_run_lists_commands_and_writes_nothing(neuscale: Callable[..., Any], runs: Path) -> None:
    said = neuscale("sweep", "run.seed=range(0,2)", "optim.lr=1e-3,3e-4", "--name", "s", "--dry-run")
    assert said.code == 0
    assert said.out.splitlines()[1] == "neuscale train run.seed=0 optim.lr=0.0003 run.name=s-seed0-lr0.0003"
    assert len(said.out.splitlines()) == 4
    assert not runs.exists()


def test_a_name_that_is_taken_is_not_used_again(neuscale: Callable[..., Any], done: Path) -> None:
    done.rename(done.with_name("s-seed1"))
    said = neuscale("sweep", "run.seed=0,1", "--name", "s")
    assert said.code == 2 and "s-seed1: already exists" in said.words
    assert not (done.parent / "s").exists()
