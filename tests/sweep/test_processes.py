"""Processes of a sweep, with fake trainings: their order, devices, failures and signals."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import ListeningProgress
from neuscale.sweep import processes
from neuscale.sweep.folder import PlannedRun, Sweep
from neuscale.sweep.processes import Swept, run_sweep
from stand_in import StandIn, meanwhile, send, until

pytestmark = pytest.mark.timeout(60)  # they take less than a second each

FINISH = """
def finish(status="finished"):
    folder = Path(env["NEUSCALE_RUNS"], name)
    folder.mkdir(exist_ok=True)
    manifest = {"status": status, "result": {"best_top1": 0.25 + 0.25 * float(words[1][-1])}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
"""
PLACES = [{"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("GPU-a", "GPU-b")]

SweepBuilder = Callable[[int], Sweep]


@pytest.fixture
def sweep(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepBuilder:
    """A function that makes a sweep over `count` seeds, with runs s-seed0, s-seed1 and so on."""
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))

    def build(count: int) -> Sweep:
        path = tmp_path / "runs" / "s"
        path.mkdir(parents=True)
        runs = [PlannedRun(f"s-seed{i}", [f"run.seed={i}", "optim.lr=0.5"]) for i in range(count)]
        return Sweep(path, ["run.seed"], runs)

    return build


def write_manifest(run: PlannedRun, status: str) -> None:
    run.folder.path.mkdir(parents=True)
    text = json.dumps({"status": status, "result": {"best_top1": 0.5}})
    run.folder.manifest_file.write_text(text)


def test_runs_are_trained_in_order_each_with_its_own_words(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress
) -> None:
    order = "open(Path(env['NEUSCALE_RUNS'], 'order'), 'a').write(name + ' ')"
    stand_in.does(FINISH, "begun()", "print('its output')", order, "finish()")
    made = sweep(3)
    assert run_sweep(made, PLACES[:1], listening) == Swept([], None)
    assert (made.path.parent / "order").read_text() == "s-seed0 s-seed1 s-seed2 "
    for number, run in enumerate(made.runs):
        words = ["train", f"run.seed={number}", "optim.lr=0.5", f"run.name=s-seed{number}", "--resume"]
        assert stand_in.started(run.name)["words"] == words
        env = stand_in.started(run.name)["env"]
        assert (env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"]) == ("3", "GPU-a")
        assert (made.path / f"s-seed{number}.log").read_text() == "its output\n"
    told = listening.messages
    assert told[0] == "s-seed0: run.seed=0", "what differs, and not what all share"
    assert told[1] == "s-seed0 is finished: best top-1 25.00%; 1 of 3 are"
    assert told[3] == "s-seed1 is finished: best top-1 50.00%; 2 of 3 are"


def test_as_many_runs_at_a_time_as_there_are_places_and_one_in_each(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress
) -> None:
    """The first two runs wait for each other; the third waits until a device is free."""
    wait = "if name != 's-seed2': note('here'); wait_for('here', 'here')"
    count = "note(str(len([p for p in here.glob('s-*.running')])))"
    stand_in.does(
        FINISH,
        "running = here / f'{name}.running'",
        "running.touch()",
        wait,
        count,
        "begun()",
        "running.unlink()",
        "finish()",
    )
    assert run_sweep(sweep(3), PLACES, listening) == Swept([], None)
    gpus = [stand_in.started(f"s-seed{i}")["env"]["CUDA_VISIBLE_DEVICES"] for i in range(3)]
    assert sorted(gpus[:2]) == ["GPU-a", "GPU-b"]
    assert gpus[2] in ("GPU-a", "GPU-b")
    assert int(stand_in.said("s-seed2")[0]) <= 2


def test_a_failed_run_is_named_with_its_own_words_and_the_next_ones_are_trained(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress
) -> None:
    stand_in.does(
        FINISH,
        "if name == 's-seed0':",
        "    print('error: first.', 'error: the disk is full.', 'Free some.', sep='\\n')",
        "    sys.exit(1)",
        "if name == 's-seed1': sys.exit(7)",
        "if name == 's-seed2': os.kill(os.getpid(), signal.SIGKILL)",
        "if name == 's-seed3': sys.exit(75)",
        "finish()",
    )
    made = sweep(5)
    assert run_sweep(made, PLACES[:1], listening) == Swept(["s-seed0", "s-seed1", "s-seed2"], None)
    log = made.path
    assert listening.warnings == [
        f"s-seed0 failed (the disk is full); see {log}/s-seed0.log",
        f"s-seed1 failed (exit code 7); see {log}/s-seed1.log",
        f"s-seed2 failed (ended by SIGKILL); see {log}/s-seed2.log",
    ]
    assert made.runs[4].finished


def test_a_sweep_that_goes_on_trains_what_is_not_finished(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress
) -> None:
    stand_in.does(FINISH, "begun()", "print('second')", "finish()")
    made = sweep(4)
    write_manifest(made.runs[1], "finished")
    write_manifest(made.runs[2], "stopped")
    (made.path / "s-seed2.log").write_text("first\n")
    made.runs[0].folder.path.mkdir()
    assert run_sweep(made, PLACES, listening) == Swept([], None)
    assert stand_in.begun() == ["s-seed0", "s-seed2", "s-seed3"]
    assert (made.path / "s-seed2.log").read_text() == "first\nsecond\n"
    assert listening.messages[0] == "1 of 4 runs are finished"
    assert listening.messages[-1].endswith("; 4 of 4 are")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_has_the_runs_save_and_no_other_begin(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress, number: signal.Signals
) -> None:
    listen = "for number in (2, 15, 1): on(number, lambda: (finish('stopped'), sys.exit(75)))"
    stand_in.does(FINISH, listen, "begun()", "while True: time.sleep(0.01)")

    def stop() -> None:
        until(lambda: stand_in.begun() == ["s-seed0", "s-seed1"])
        send(number)

    with meanwhile(stop):
        assert run_sweep(sweep(3), PLACES, listening) == Swept([], number.name)
    assert stand_in.said("s-seed0") == stand_in.said("s-seed1") == ["SIGTERM"]
    assert stand_in.begun() == ["s-seed0", "s-seed1"]
    assert "stopping: the runs save" in listening.messages
    assert listening.warnings == [], "that it was stopped is no failure"


def test_a_run_that_is_just_starting_is_told_to_stop_as_well(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = processes._start

    def slow(*given: Any) -> Any:
        started = start(*given)
        until(lambda: stand_in.begun() == ["s-seed0"])
        send(signal.SIGTERM)
        return started

    monkeypatch.setattr(processes, "_start", slow)
    stand_in.does("on(15, lambda: sys.exit(75))", "begun()", "while True: time.sleep(0.01)")
    assert run_sweep(sweep(2), PLACES[:1], listening) == Swept([], "SIGTERM")
    assert stand_in.said("s-seed0") == ["SIGTERM"]
    assert stand_in.begun() == ["s-seed0"]


def test_each_run_is_made_to_hear_of_the_sweeps_end(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = stand_in.folder / "in-child"
    monkeypatch.setattr(processes, "END_WITH_PARENT", lambda: done.write_text(str(os.getpid())))
    stand_in.does(FINISH, "begun()", "finish()")
    run_sweep(sweep(1), PLACES[:1], listening)
    assert int(done.read_text()) == stand_in.started("s-seed0")["pid"]


def test_a_second_signal_ends_runs_that_do_not_save(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress
) -> None:
    stand_in.does("on(15)", "on(2)", "begun()", "while True: time.sleep(0.01)")

    def stop() -> None:
        until(lambda: stand_in.begun() == ["s-seed0", "s-seed1"])
        send(signal.SIGINT)
        until(lambda: stand_in.said("s-seed0") == stand_in.said("s-seed1") == ["SIGTERM"])
        send(signal.SIGINT)

    with meanwhile(stop):
        assert run_sweep(sweep(2), PLACES, listening) == Swept([], "SIGINT")
    assert stand_in.said("s-seed0") == stand_in.said("s-seed1") == ["SIGTERM"]
    assert not any(psutil.pid_exists(stand_in.started(name)["pid"]) for name in ("s-seed0", "s-seed1"))


def test_runs_that_do_not_save_in_time_are_ended(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processes.SAVE_SECONDS == 600
    monkeypatch.setattr(processes, "SAVE_SECONDS", 0.3)
    stand_in.does("on(15)", "begun()", "while True: time.sleep(0.01)")

    def stop() -> None:
        until(lambda: stand_in.begun() == ["s-seed0"])
        send(signal.SIGTERM)

    with meanwhile(stop):
        assert run_sweep(sweep(1), PLACES[:1], listening) == Swept([], "SIGTERM")
    assert stand_in.said("s-seed0") == ["SIGTERM"]


def test_a_sweep_started_with_a_signal_ignored_goes_on_ignoring_it(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress
) -> None:
    stand_in.does(FINISH, "begun()", "wait_for('go')", "finish()")
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def interrupt() -> None:
        until(lambda: stand_in.begun() == ["s-seed0"])
        send(signal.SIGINT)
        send(signal.SIGINT)
        (stand_in.folder / "x.said").write_text("go\n")

    with meanwhile(interrupt):
        assert run_sweep(sweep(1), PLACES[:1], listening) == Swept([], None)
    assert "SIGINT" in stand_in.started("s-seed0")["ignores"]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_ctrl_c_at_the_terminal_reaches_a_run_from_the_sweep_only(
    stand_in: StandIn, sweep: SweepBuilder, listening: ListeningProgress
) -> None:
    before = [signal.getsignal(number) for number in (1, 2, 15)]
    stand_in.does(FINISH, "begun()", "finish()")
    run_sweep(sweep(1), PLACES[:1], listening)
    started = stand_in.started("s-seed0")
    assert started["session"] == started["pid"] != os.getsid(0)
    assert [signal.getsignal(number) for number in (1, 2, 15)] == before
