"""Launched processes: their ranks and environment, their output, and the error that the launcher reports."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from neuscale.distributed import launch as launching
from neuscale.distributed.launch import launch
from neuscale.distributed.nodes import SECRET
from neuscale.distributed.rank import started_by_launcher
from neuscale.distributed.worker_errors import REPORTS, report_to_launcher
from neuscale.errors import UsageError, UserError, WorkerError
from neuscale.hardware import check_gpus
from stand_in import StandIn

pytestmark = pytest.mark.timeout(60)  # they take less than a second each

REPORT = """
def report(time, problem, code):
    text = json.dumps({"time": time, "problem": problem, "fix": "So.", "exit_code": code})
    Path(env["NEUSCALE_WORKER_REPORTS"], str(rank)).write_text(text)
"""


@pytest.fixture(autouse=True)
def seven_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "available_cores", lambda: 7)


def test_each_process_is_told_which_it_is_and_where_all_meet(stand_in: StandIn) -> None:
    stand_in.does("begun()")
    assert launch(["train", "optim.lr=0.5", "a b"], 3) == 0
    assert stand_in.begun() == ["0", "1", "2"]
    told = [stand_in.started(rank)["env"] for rank in range(3)]
    assert all(stand_in.started(rank)["words"] == ["train", "optim.lr=0.5", "a b"] for rank in range(3))
    assert [env["RANK"] for env in told] == ["0", "1", "2"]
    assert [env["LOCAL_RANK"] for env in told] == ["0", "1", "2"]
    for env in told:
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == ("3", "3")
        assert env["MASTER_ADDR"] == "127.0.0.1"
        assert env["OMP_NUM_THREADS"] == "2", "seven cores are divided among three"
        if sys.platform == "linux":
            assert env["GLOO_SOCKET_IFNAME"] == "lo", "on one machine nothing else is to reach gloo's ports"
        assert env["TORCHELASTIC_USE_AGENT_STORE"] == "True", "the store is the launcher's, not of rank 0"
        assert env["TORCHELASTIC_RESTART_COUNT"] == "0"
    for name in ("MASTER_PORT", "TORCHELASTIC_RUN_ID", REPORTS, SECRET):
        assert len({env[name] for env in told}) == 1, name
    assert 0 < int(told[0]["MASTER_PORT"]) < 65536
    assert not Path(told[0][REPORTS]).exists(), "nothing is left in /tmp"


def test_the_store_where_processes_meet_is_at_the_address_they_are_told(stand_in: StandIn) -> None:
    stand_in.does(
        "import socket",
        "with socket.create_connection((env['MASTER_ADDR'], int(env['MASTER_PORT'])), timeout=10):",
        "    note('connected')",
    )
    assert launch(["train"], 2) == 0
    assert stand_in.said(0) == stand_in.said(1) == ["connected"]


@pytest.mark.parametrize(("asked", "threads"), [("5", "5"), (None, "1")])
def test_threads_that_were_asked_for_are_left_and_never_none(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, asked: str | None, threads: str
) -> None:
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(launching, "available_cores", lambda: 1)
    stand_in.does("begun()")
    launch(["train"], 2)
    assert stand_in.started(1)["env"]["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_that_one_process_saved_is_to_be_resumed(stand_in: StandIn, rank: int) -> None:
    stand_in.does(f"sys.exit(75 if rank == {rank} else 0)")
    assert launch(["train"], 2) == 75


@pytest.mark.parametrize("quiet", [True, False])
def test_what_the_processes_print_is_left_out_where_asked(
    stand_in: StandIn, capfd: pytest.CaptureFixture[str], quiet: bool
) -> None:
    stand_in.does("print('a table')", "print('a line', file=sys.stderr)")
    assert launch(["eval", "x"], 1, quiet=quiet) == 0
    said = capfd.readouterr()
    assert said.out == ("" if quiet else "a table\n")
    assert said.err == "a line\n"


def test_the_first_report_is_the_error_whichever_process_it_is_of(stand_in: StandIn) -> None:
    """The report of the other process, about a lost peer, is later but comes from the rank checked first."""
    stand_in.does(
        REPORT,
        "if rank == 1:",
        "    report(10.0, 'out of paper', 2)",
        "    sys.exit(2)",
        "on(signal.SIGTERM, lambda: (report(20.0, 'a peer has gone', 1), os._exit(1)))",
        "while True: time.sleep(0.01)",
    )
    with pytest.raises(WorkerError) as raised:
        launch(["train"], 2)
    assert (raised.value.problem, raised.value.fix) == ("out of paper", "So.")
    assert raised.value.exit_code == 2
    assert stand_in.said(0) == ["SIGTERM"], "it is ended, and may save"


def test_an_error_without_a_report_is_its_exit_code(stand_in: StandIn) -> None:
    stand_in.does("sys.exit(9 if rank == 1 else 0)")
    assert launch(["train"], 2) == 9


def test_a_process_that_outlives_a_failed_one_is_killed(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "FAILED_SECONDS", 0.2)
    stand_in.does(
        "if rank == 0:",
        "    wait_for('deaf')",
        "    os.kill(os.getpid(), signal.SIGKILL)",
        "on(signal.SIGTERM)",
        "note('deaf')",
        "while True: time.sleep(0.01)",
    )
    with pytest.raises(WorkerError, match=r"^process 0 of 2 was ended by SIGKILL\.") as raised:
        launch(["train"], 2)
    assert "memory" in raised.value.fix
    assert raised.value.exit_code == 1
    assert stand_in.said(1) == ["deaf", "SIGTERM"]


def test_what_others_say_of_a_killed_process_is_not_the_error(stand_in: StandIn) -> None:
    stand_in.does(
        REPORT,
        "if rank == 1:",
        "    wait_for('reported')",
        "    os.kill(os.getpid(), signal.SIGKILL)",
        "report(10.0, 'a peer has gone', 1)",
        "note('reported')",
        "time.sleep(30)",
    )
    with pytest.raises(WorkerError, match=r"^process 1 of 2 was ended by SIGKILL\."):
        launch(["train"], 2)


@pytest.mark.parametrize(
    ("there", "wanted", "says"),
    [
        (0, 1, "1 GPU asked for, and there is none"),
        (1, 2, "2 GPUs asked for, and there is 1 that"),
        (3, 4, "4 GPUs asked for, and there are 3 that"),
        (4, 4, None),
    ],
)
def test_more_gpus_than_there_are(
    monkeypatch: pytest.MonkeyPatch, there: int, wanted: int, says: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there or 8)
    if says is None:
        check_gpus(wanted)
        return
    with pytest.raises(UsageError, match=says):
        check_gpus(wanted)


@pytest.mark.parametrize(("world", "started"), [(None, False), ("1", False), ("2", True)])
def test_one_of_several_processes_knows_it(
    monkeypatch: pytest.MonkeyPatch, world: str | None, started: bool
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):  # as a launcher sets them
        monkeypatch.setenv(name, "1")
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert started_by_launcher() == started


def test_a_worker_leaves_its_error_under_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv(REPORTS, raising=False)
    error = UsageError("what", "so")
    assert not report_to_launcher(error), "there is no launcher"
    monkeypatch.setenv(REPORTS, str(tmp_path))
    before = time.time()
    assert report_to_launcher(error)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    told = json.loads((tmp_path / "3").read_text())
    assert before <= told.pop("time") <= time.time()
    assert told == {"problem": "what", "fix": "so", "exit_code": 2}
    monkeypatch.setenv(REPORTS, str(tmp_path / "gone"))
    assert not report_to_launcher(UserError("what"))
