"""Waiting of OpenMP's threads: asleep while other processes use the cores, spinning while they do not."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from neuscale import contention
from neuscale.contention import AdaptiveWaiting, Look, adaptive_waiting, other_load
from neuscale.hardware import available_cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what torch uses on Linux")


@contextmanager
def busy_programs(count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Programs that each keep one core busy."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield programs
    finally:
        for program in programs:
            program.kill()
            program.wait()


def look(time: float, ran: float = 0.0, waited: float = 0.0, busy: float = 0.0) -> Look:
    return Look(time, ran, busy, {"1": waited})


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> tuple[AdaptiveWaiting, list[str]]:
    """An AdaptiveWaiting of two cores without its watch; its idle teams are fakes."""

    class Team:
        def __init__(self, parallel: object, size: int) -> None:
            assert size == 2

        def end(self) -> None:
            pass

    monkeypatch.setattr(contention, "_IdleTeam", Team)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    lines: list[str] = []
    return AdaptiveWaiting(print, lines.append), lines


def test_threads_sleep_after_two_looks_that_were_late_and_spin_after_four_quiet_ones(
    waiting: tuple[AdaptiveWaiting, list[str]],
) -> None:
    found, lines = waiting
    # Of two threads, one shares its core with another program: each half second it waits for a quarter.
    looks = [look(0.5 * i, 0.75 * i, 0.25 * i, 1.0 * i) for i in range(4)]
    found.consider(looks[1], looks[0])
    assert not found.sleeps, "one late look may be chance"
    found.consider(looks[2], looks[1])
    assert found.sleeps
    assert lines == ["other processes use 0.5 of the 2 cores here: until they end, this is slower"]
    quiet = [look(2 + 0.5 * i, 3 + 1.0 * i, 1.0, 4 + 1.0 * i) for i in range(6)]
    for i in range(3):
        found.consider(quiet[i + 1], quiet[i])
        assert found.sleeps
    found.consider(look(4.0, 6.0, 1.0, 7.5), look(3.5, 6.0, 1.0, 7.0))  # others again: counted anew
    for i in range(4):
        assert found.sleeps
        found.consider(quiet[i + 1], quiet[i])
    assert not found.sleeps
    for i in range(2):
        found.consider(looks[i + 1], looks[i])
    assert found.sleeps and len(lines) == 1, "it is said once"


def test_an_idle_machine_is_left_alone(waiting: tuple[AdaptiveWaiting, list[str]]) -> None:
    """The kernel's own work makes a thread wait for a few hundredths of its time."""
    found, lines = waiting
    for i in range(20):
        found.consider(look(0.5 * (i + 1), i + 1.0, 0.04 * (i + 1), i + 1.1), look(0.5 * i, i, 0.04 * i, i))
    assert not found.sleeps and lines == []


def test_what_others_use_is_measured() -> None:
    cores = len(os.sched_getaffinity(0))
    before = other_load(0.5)
    with busy_programs(1):
        during = other_load(1.0)
    if before is None or during is None or before > 0.5 or cores < 2:
        pytest.skip("this machine does other work, has one core, or no /proc")
    assert during > 0.5


LOOP = """
import json, sys, time, torch
from neuscale.contention import adaptive_waiting
torch.set_num_threads(2)
torch.manual_seed(0)
a, b = torch.randn(48, 64), torch.randn(64, 4096)
lines, sums = [], []
def steps(seconds):
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            c = (a @ b).relu_().add_(1.0)
        count += 20
    sums.append(c.sum().item())
    return count / seconds
if sys.argv[1] == "adapt":
    with adaptive_waiting(lines.append):
        steps(2.5)
        rate = steps(2)
else:
    steps(2.5)
    rate = steps(2)
print(json.dumps({"rate": rate, "lines": lines, "sums": sums, "threads": torch.get_num_threads()}))
"""


def run_loop(how: str) -> dict[str, object]:
    environment = {k: v for k, v in os.environ.items() if k not in {"OMP_NUM_THREADS", *contention._CHOSEN}}
    command = [sys.executable, "-c", LOOP, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_on_a_busy_machine_it_is_noticed_told_and_computes_the_same() -> None:
    """Bits and number of threads stay the same; `benchmarks/busy.py` measures the speed."""
    if contention._gomp_parallel() is None:
        pytest.skip("this torch does not use libgomp")
    with busy_programs(len(os.sched_getaffinity(0))):
        adapted = run_loop("adapt")
        plain = run_loop("plain")
    (line,) = adapted["lines"]  # type: ignore[misc]
    assert "other processes use" in line
    assert adapted["threads"] == plain["threads"] == 2
    assert len(set(adapted["sums"] + plain["sums"])) == 1  # type: ignore[operator]


def tasks() -> int:
    """Number of this process's threads, those of OpenMP included."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_libgomp_throttles_while_the_idle_team_is_there() -> None:
    """More threads of OpenMP than cores; they end with the team."""
    parallel = contention._gomp_parallel()
    if parallel is None:
        pytest.skip("this torch does not use libgomp")
    before = threading.active_count(), tasks()
    team = contention._IdleTeam(parallel, 5)
    assert tasks() == before[1] + 5  # the holder and its four workers
    team.end()
    end = time.monotonic() + 10
    while tasks() > before[1] and time.monotonic() < end:
        time.sleep(0.01)
    assert (threading.active_count(), tasks()) == before


def test_a_choice_of_the_user_and_one_thread_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def watches() -> bool:
        with adaptive_waiting(lambda _: None):
            return any(thread.name == "adaptive-waiting" for thread in threading.enumerate())

    for name in contention._CHOSEN:  # make test sets one of them
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert watches() == (contention._gomp_parallel() is not None)
        with adaptive_waiting(lambda _: None):  # a block inside another leaves it to the outer one
            with adaptive_waiting(lambda _: None):
                names = [thread.name for thread in threading.enumerate()]
            assert names.count("adaptive-waiting") <= 1
        monkeypatch.setenv("OMP_WAIT_POLICY", "active")
        assert not watches()
        monkeypatch.delenv("OMP_WAIT_POLICY")
        torch.set_num_threads(1)
        assert not watches()
    finally:
        torch.set_num_threads(threads)


def test_where_no_more_threads_can_be_started_it_goes_on_spinning(
    waiting: tuple[AdaptiveWaiting, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """libgomp would end the whole process."""
    found, lines = waiting

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for i in range(4):
        found.consider(look(0.5 * (i + 1), i + 1.0, i + 1.0, i + 1.5), look(0.5 * i, i, i, i))
    assert not found.sleeps and lines == []


def test_it_goes_on_where_the_watch_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next block can adapt again."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "adaptive-waiting":
            raise RuntimeError("can't start new thread")
        start(self)

    for name in contention._CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    ran = []
    for _ in range(2):
        with adaptive_waiting(lambda _: None):
            ran.append(1)
    assert ran == [1, 1] and not contention._ACTIVE.locked()


def test_a_library_that_is_gone_or_has_no_such_function_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after torch was installed anew under a notebook that runs."""

    def gone(name: str) -> object:
        raise OSError(f"{name}: no such file")

    monkeypatch.setattr("ctypes.CDLL", gone)
    assert contention._gomp_parallel() is None
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert contention._gomp_parallel() is None


def test_a_team_that_cannot_be_made_is_not_waited_for_without_end() -> None:
    def fails(*_: object) -> None:
        raise OSError("no such library")

    caught: list[object] = []
    hook, threading.excepthook = threading.excepthook, lambda args: caught.append(args.exc_value)
    try:
        contention._IdleTeam(fails, 2).end()
    finally:
        threading.excepthook = hook
    assert [str(each) for each in caught] == ["no such library"]


def test_own_threads_that_are_in_each_others_way_are_no_other_processes(
    waiting: tuple[AdaptiveWaiting, list[str]],
) -> None:
    """They sleep as long as some are late, and nobody is told of others."""
    found, lines = waiting
    looks = [look(0.5 * i, 1.0 * i, 0.2 * i, 1.0 * i) for i in range(12)]
    states = []
    for i in range(11):
        found.consider(looks[i + 1], looks[i])
        states.append(found.sleeps)
    assert states == [False] + [True] * 10 and lines == []
