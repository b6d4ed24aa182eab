"""`train`: checks before processes start, arguments of the processes, and printed results."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neuscale.cli import run
from neuscale.config import compose_config
from neuscale.distributed.nodes import Nodes
from neuscale.errors import EXIT_RESUME
from neuscale.evaluation.calibration import Calibration
from neuscale.evaluation.evaluate import Evaluation
from neuscale.training.outcome import Outcome
from neuscale.training.validate import validate

from .options import CALLED, NOT_CALLED, Callees


@pytest.fixture
def callees(monkeypatch: pytest.MonkeyPatch, runs: Path) -> Callees:
    """Fakes for the training itself, its processes and its data."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    found = Callees(monkeypatch)
    found.stand_in("neuscale.hardware.check_gpus")
    found.stand_in("neuscale.hardware.keep_freed_memory")
    found.stand_in("neuscale.distributed.launch.launch", 0)
    found.stand_in("neuscale.distributed.nodes.srun_nodes", Nodes())
    found.stand_in("neuscale.training.validate.validate", validate)
    found.stand_in("neuscale.data.open.open_data")
    outcome = types.SimpleNamespace(stopped_by=None)
    found.stand_in("neuscale.training.run.train", types.SimpleNamespace(is_main=False, outcome=outcome))
    return found


def test_what_processes_would_fail_at_is_found_before_they_start(
    callees: Callees, capfd: pytest.CaptureFixture[str]
) -> None:
    callees.stand_in("neuscale.distributed.nodes.srun_nodes", Nodes(count=3))
    assert run(["train", "train.global_batch_size=36", "train.micro_batch=3", "--gpus", "4"]) == 0
    assert callees.found("validate.world_size") == 12, "on all nodes together"
    assert callees.found("validate.config.train.global_batch_size") == 36
    assert callees.found("open_data.config.data.name") == "fashion_mnist"
    callees.arguments.clear()
    for words, says in (
        (["train.global_batch_size=32"], "train.global_batch_size=32 does not divide into 12 processes."),
        (["train.global_batch_size=36", "run.time_limit=soon"], "run.time_limit=soon: expected a time"),
    ):
        assert run(["train", *words, "--gpus", "4"]) == 2
        assert says in " ".join(capfd.readouterr().err.split())
    assert callees.found("launch") == callees.found("open_data") == NOT_CALLED


@pytest.mark.parametrize(("index", "secret", "warned"), [(0, "", True), (1, "", False), (0, "known", False)])
def test_nodes_that_meet_without_a_secret_are_warned_once(
    callees: Callees, capfd: pytest.CaptureFixture[str], index: int, secret: str, warned: bool
) -> None:
    nodes = Nodes(count=3, index=index, secret=secret)
    callees.stand_in("neuscale.distributed.nodes.srun_nodes", nodes)
    assert run(["train", "train.global_batch_size=36", "--gpus", "4"]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert ("export NEUSCALE_JOB_SECRET=$(od -An -N16 -tx1 /dev/urandom" in said) == warned
    assert "known" not in said


def test_processes_go_on_with_the_run_and_the_fields_that_are_changed(
    callees: Callees, tmp_path: Path
) -> None:
    """Presets are part of the run's stored configuration and cannot change, so they are not passed on."""
    begun: Any = types.SimpleNamespace(path=tmp_path / "begun")
    callees.stand_in("neuscale.cli.overrides.configure", lambda **_: (compose_config([]), begun))
    callees.stand_in("neuscale.runs.own_code.use_code", [])
    words = ["experiment=quickstart", "optim.lr=3", "--resume", "--processes", "2", "--json"]
    assert run(["train", "begun", *words]) == 0
    changed = ["optim.lr=3", "run.device=cpu", "--json"]
    assert callees.found("launch.arguments") == ["train", str(tmp_path / "begun"), "--resume", *changed]


@pytest.mark.parametrize(("given", "threads"), [("3", []), (None, [7])])
def test_one_process_computes_on_all_cores_unless_somebody_says_otherwise(
    given: str | None, threads: list[int], callees: Callees, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    callees.stand_in("neuscale.hardware.available_cores", 7)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    assert run(["train"]) == 0
    assert set_to == threads


@pytest.fixture
def trained(callees: Callees, runs: Path) -> Callable[..., int]:
    """A function that runs `train` with a fake outcome: 4 epochs, the given classes and stop signal."""

    def command(classes: int, stopped_by: str | None, *words: str) -> int:
        calibration = Calibration([0], [0.0], [0])
        last = Evaluation(0.4321, 0.8765, 1.23456, 12345, torch.zeros(classes, classes), calibration)
        outcome = Outcome(
            steps=1234,
            epochs=4,
            seconds=754.0,
            images_per_second=6543.2,
            last=last,
            best_top1=0.5678,
            stopped_by=stopped_by,
        )
        folder = types.SimpleNamespace(
            name="told", argument="told", path=runs / "told", manifest_file=runs / "told" / "manifest.json"
        )
        result = types.SimpleNamespace(is_main=True, outcome=outcome, run=folder)
        callees.stand_in("neuscale.training.run.train", result)
        return run(["train", *words])

    return command


@pytest.mark.parametrize("classes", [5, 6])
def test_the_numbers_of_a_run_stand_beside_their_names(
    classes: int, trained: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert trained(classes, None) == 0
    said = capfd.readouterr()
    rows = dict(
        [cell.strip() for cell in line.strip("│┃| ").split("│")]
        for line in said.out.splitlines()
        if "│" in line[1:-1]
    )
    expected = {
        "top-1": "43.21%",
        "top-5": "87.65%",
        "loss": "1.2346",
        "best top-1": "56.78%",
        "images evaluated": "12,345",
        "training time": "12 min 34 s",
        "throughput": "6,543 img/s",
    }
    if classes == 5:  # top-5 of five classes is always 100%
        del expected["top-5"]
    assert rows == expected
    assert "neuscale eval told" in said.err
    assert "neuscale runs report told" in said.err


@pytest.mark.parametrize(
    ("device", "size", "option"),
    [("cpu", "2", "--processes 2"), ("cuda", "4", "--gpus 4"), ("cpu", "1", ""), ("cuda", "1", "")],
)
def test_a_stopped_run_says_how_to_go_on_with_as_many_processes(
    device: str,
    size: str,
    option: str,
    trained: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number is that of one node, because the launcher multiplies it by the nodes."""
    monkeypatch.setenv("WORLD_SIZE", str(2 * int(size)))
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):  # set by launchers
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", size)
    assert trained(3, "SIGTERM", f"run.device={device}") == EXIT_RESUME
    said = capfd.readouterr()
    assert "stopped by SIGTERM after step 1,234; everything is saved." in said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("Resume with: ")]
    assert line == f"Resume with: neuscale train --resume told {option}".rstrip()
    assert "top-1" not in said.out


@pytest.mark.parametrize(("device", "kept"), [("cpu", CALLED), ("mps", NOT_CALLED)])
def test_freed_memory_is_kept_where_the_cpu_trains(
    device: str, kept: str, callees: Callees, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    assert run(["train", f"run.device={device}"]) == 0
    assert callees.found("keep_freed_memory") == kept
