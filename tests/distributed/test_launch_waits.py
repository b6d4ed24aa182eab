"""Time that a launcher waits for its processes, and the process that it names as the cause of a failure."""

import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from neuscale.distributed import launch as launching
from neuscale.distributed.rendezvous import Failure


class Worker:
    """Fake process that exits at the time and with the code in `ends`, unless a signal ends it before."""

    def __init__(self, clock: "Clock", ends: tuple[float, int] | None, obeys: bool = True) -> None:
        self.clock, self.ends, self.obeys = clock, ends, obeys
        self.sent: list[tuple[float, int]] = []

    def poll(self) -> int | None:
        if self.ends is not None and self.clock.now >= self.ends[0]:
            return self.ends[1]
        return None

    def send_signal(self, number: int) -> None:
        self.sent.append((self.clock.now, number))
        if number == signal.SIGKILL or self.obeys:
            self.ends = (self.clock.now, -number)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        stand_in = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep, time=time.time)
        monkeypatch.setattr(launching, "time", stand_in)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 20_000, "it waits forever"


class Peers:
    """Fake peers that hear of another node's failure at `fails`; by default never, as on one machine."""

    def __init__(self, clock: Clock, fails: float = float("inf")) -> None:
        self.clock, self.fails = clock, fails
        self.heard = False
        self.told: list[Failure] = []

    def tell(self, failure: Failure) -> None:
        self.told.append(failure)

    def failed(self) -> bool:
        self.heard = self.clock.now >= self.fails
        return self.heard


def wait(
    workers: list[Worker], peers: Peers, received: list[int] | None = None, first: int = 0
) -> int | None:
    given: Any = (workers, received or [], peers, first)
    return launching._wait(*given)


@pytest.mark.parametrize(
    ("codes", "first", "failed", "told"),
    [
        ((1, -9), 0, 1, Failure(1, True, 1)),  # the other rank only saw its connection closed
        ((-9, 1), 2, 0, Failure(2, True, 1)),
        ((0, 2), 4, 1, Failure(5, False, 2)),
        ((75, 3), 0, 1, Failure(1, False, 3)),
        ((75, 0), 0, None, None),
    ],
)
def test_of_several_ends_at_once_the_killed_one_is_the_cause(
    monkeypatch: pytest.MonkeyPatch,
    codes: tuple[int, int],
    first: int,
    failed: int | None,
    told: Failure | None,
) -> None:
    clock = Clock(monkeypatch)
    peers = Peers(clock)
    assert wait([Worker(clock, (0.0, code)) for code in codes], peers, first=first) == failed
    assert peers.told == ([told] if told else [])


def test_the_first_to_fail_is_named_and_not_those_that_are_ended_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    workers = [Worker(clock, None), Worker(clock, (1003.0, 1)), Worker(clock, None, obeys=False)]
    assert wait(workers, Peers(clock)) == 1
    assert [number for _, number in workers[0].sent] == [signal.SIGTERM]
    assert [number for _, number in workers[2].sent] == [signal.SIGTERM, signal.SIGKILL]
    (asked, _), (killed, _) = workers[2].sent
    assert asked == pytest.approx(1003, abs=0.2)
    assert killed - asked == pytest.approx(10, abs=0.2), "ten seconds"


def test_those_that_are_told_to_stop_have_ten_minutes_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    slow, hung = Worker(clock, (1590.0, 75)), Worker(clock, None, obeys=False)
    wait([slow, hung], Peers(clock), received=[signal.SIGTERM])
    assert slow.sent == []
    ((killed, number),) = hung.sent
    assert (killed, number) == (pytest.approx(1600, abs=0.2), signal.SIGKILL)


def test_a_process_that_has_saved_is_not_waited_for_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """This happens if SIGUSR2, which the launcher only forwards, has reached only one of them."""
    clock = Clock(monkeypatch)
    hung = Worker(clock, None, obeys=False)
    wait([Worker(clock, (1050.0, 75)), hung], Peers(clock))
    assert hung.sent == [(pytest.approx(1650, abs=0.2), signal.SIGKILL)]


def test_without_a_signal_nobody_is_hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    workers = [Worker(clock, (1000.0 + 7200, 0)), Worker(clock, (1005.0, 0))]
    assert wait(workers, Peers(clock)) is None
    assert [worker.sent for worker in workers] == [[], []]


def test_a_failure_on_another_node_ends_the_processes_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    obedient, deaf = Worker(clock, None), Worker(clock, None, obeys=False)
    peers = Peers(clock, fails=1020.0)
    assert wait([obedient, deaf], peers, first=2) is None
    assert [number for _, number in obedient.sent] == [signal.SIGTERM]
    (asked, _), (killed, number) = deaf.sent
    assert asked == pytest.approx(1020, abs=0.2)
    assert (killed - asked, number) == (pytest.approx(10, abs=0.2), signal.SIGKILL)
    assert peers.told == [], "that they were ended is no failure of theirs"
