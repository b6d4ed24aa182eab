"""Signals to a launcher: which are forwarded to its processes, which end them, and the resulting error."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from neuscale.distributed import launch as launching
from neuscale.distributed.launch import launch
from neuscale.distributed.rendezvous import Peers
from neuscale.distributed.signals import END_WITH_PARENT, accept_save_signal, hold_save_signal
from neuscale.errors import WorkerError
from stand_in import StandIn, meanwhile, send, signals_survived, until

pytestmark = pytest.mark.timeout(60)  # they take less than a second each

# Each process records its start and the signals that it receives.
LISTENING = ["for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): on(number)", "on(signal.SIGUSR2)"]
LISTENING += ["signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})", "begun()"]
FOREVER = ["while True: time.sleep(0.01)"]


def all_begun(stand_in: StandIn) -> Callable[[], bool]:
    return lambda: stand_in.begun() == ["0", "1"]


def all_said(stand_in: StandIn, *lines: str) -> Callable[[], bool]:
    return lambda: stand_in.said(0) == stand_in.said(1) == list(lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_on_to_the_processes_which_then_save(stand_in: StandIn, number: signal.Signals) -> None:
    stand_in.does(*LISTENING, f"wait_for('{number.name}', '{number.name}')", "sys.exit(75)")

    def stop() -> None:
        until(all_begun(stand_in))
        send(number)

    with meanwhile(stop):
        assert launch(["train"], 2) == 75
    assert stand_in.said(0) == stand_in.said(1) == [number.name], "once, and the same one"


def test_a_second_signal_kills_those_that_do_not_save(stand_in: StandIn) -> None:
    stand_in.does(*LISTENING, *FOREVER)

    def stop() -> None:
        until(all_begun(stand_in))
        send(signal.SIGTERM)
        until(all_said(stand_in, "SIGTERM"))
        send(signal.SIGINT)

    with meanwhile(stop), pytest.raises(WorkerError) as raised:
        launch(["train"], 2)
    assert raised.value.problem == "stopped by SIGTERM before it could save."
    assert raised.value.exit_code == 143
    assert stand_in.said(0) == stand_in.said(1) == ["SIGTERM"], "killed, not asked twice"
    assert not any(psutil.pid_exists(stand_in.started(rank)["pid"]) for rank in (0, 1))


def test_what_is_no_training_does_not_speak_of_saving(stand_in: StandIn) -> None:
    stand_in.does("begun()", *FOREVER)

    def stop() -> None:
        until(all_begun(stand_in))
        send(signal.SIGHUP)

    with meanwhile(stop), pytest.raises(WorkerError) as raised:
        launch(["eval", "x"], 2)
    assert (raised.value.problem, raised.value.exit_code) == ("stopped by SIGHUP.", 129)


def test_the_signal_to_save_is_passed_on_each_time_and_is_no_second_one(stand_in: StandIn) -> None:
    saves = "wait_for('SIGUSR2', 'SIGUSR2', 'SIGUSR2', 'SIGUSR2')"
    stand_in.does(*LISTENING, saves, "sys.exit(75)")

    def ask() -> None:
        until(all_begun(stand_in))
        send(signal.SIGUSR2)
        until(all_said(stand_in, "SIGUSR2"))
        send(signal.SIGUSR2)

    with meanwhile(ask):
        assert launch(["train"], 2) == 75
    assert stand_in.said(0) == stand_in.said(1) == ["SIGUSR2", "SIGUSR2"]


def test_a_signal_to_save_that_came_too_early_reaches_the_processes(stand_in: StandIn) -> None:
    """A batch job may be asked to save while its data is still being copied."""
    stand_in.does(*LISTENING, "wait_for('SIGUSR2', 'SIGUSR2')", "sys.exit(75)")
    hold_save_signal()
    send(signal.SIGUSR2)
    assert launch(["train"], 2) == 75
    assert stand_in.said(0) == stand_in.said(1) == ["SIGUSR2"]


def test_afterwards_signals_do_what_they_did_before_and_a_late_one_to_save_waits(stand_in: StandIn) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    stand_in.does("pass")
    assert launch(["train"], 2) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    send(signal.SIGUSR2)  # would end this process
    assert signal.SIGUSR2 in signal.sigpending()


def test_a_signal_to_save_waits_until_there_is_somebody_to_obey_it() -> None:
    with signals_survived() as had:
        hold_save_signal()
        send(signal.SIGUSR2)
        assert had == []
        accept_save_signal()
        assert had == [signal.SIGUSR2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_is_ignored_stays_ignored_in_the_launcher_and_its_processes(
    stand_in: StandIn, number: signal.Signals
) -> None:
    """A background job of a script ignores the terminal's Ctrl-C, a job under nohup its hang-up."""
    stand_in.does("on(signal.SIGTERM)", "begun()", "wait_for('SIGTERM', 'SIGTERM')", "sys.exit(75)")
    signal.signal(number, signal.SIG_IGN)

    def stop() -> None:
        until(all_begun(stand_in))
        for _ in range(3):
            send(number)
        send(signal.SIGTERM)

    with meanwhile(stop):
        assert launch(["train"], 2) == 75
    assert stand_in.said(0) == stand_in.said(1) == ["SIGTERM"]
    assert all(number.name in stand_in.started(rank)["ignores"] for rank in (0, 1))
    assert signal.getsignal(number) == signal.SIG_IGN


CHILD = """
import pathlib, signal, sys, time
def save(number, _frame):
    pathlib.Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, save)
print(flush=True)
time.sleep(30)
"""
PARENT = """
import subprocess, sys
from neuscale.distributed.signals import END_WITH_PARENT
command = [sys.executable, "-c", *sys.argv[1:]]
child = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=END_WITH_PARENT)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_each_process_is_made_to_hear_of_its_launchers_end(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = stand_in.folder / "in-child"
    monkeypatch.setattr(launching, "END_WITH_PARENT", lambda: done.write_text(str(os.getpid())))
    stand_in.does("begun()")
    assert launch(["train"], 1) == 0
    assert int(done.read_text()) == stand_in.started(0)["pid"] != os.getpid()


class StoppedWhileNodesGather(Peers):
    """Peers that send SIGTERM to the launcher before any process is started."""

    def meet(self, stop: Callable[[], bool]) -> bool:
        send(signal.SIGTERM)
        return super().meet(stop)


def test_a_signal_before_a_process_is_there_reaches_it(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "Peers", StoppedWhileNodesGather)
    stand_in.does("time.sleep(5)")
    with pytest.raises(WorkerError, match="stopped by SIGTERM before it could save"):
        launch(["train"], 2)


@pytest.mark.skipif(END_WITH_PARENT is None, reason="only Linux tells a process of its parent's end")
def test_a_process_hears_of_its_launchers_end_by_a_signal_after_which_it_can_save(tmp_path: Path) -> None:
    app = str(Path(__file__).parents[2] / "app")
    command = [sys.executable, "-c", PARENT, CHILD, str(tmp_path / "had")]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": app})
    assert launcher.stdout is not None
    child = psutil.Process(int(launcher.stdout.readline()))
    launcher.kill()
    launcher.wait()
    until((tmp_path / "had").exists)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert (tmp_path / "had").read_text() == "SIGTERM"
