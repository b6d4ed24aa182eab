"""Stopping between steps: signals that request it, the effect of a second signal, and agreement of ranks."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from neuscale.training import stopping
from neuscale.training.stopping import Deadline, Stopped, StopRequest
from stand_in import send, signals_survived

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def had(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Signals that nobody handled."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with signals_survived() as unhandled:
        yield unhandled


def request() -> StopRequest:
    return StopRequest(CPU, Deadline(None))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_asks_for_a_stop_after_this_step(had: list[int], number: signal.Signals) -> None:
    with request() as stop:
        assert not stop.agreed(1)
        send(number)
        assert stop.signal == number.name
        assert stop.agreed(1)
        assert stop.agreed(2)
    assert had == []
    if number != signal.SIGUSR2:  # SIGUSR2 then stays pending: there is nothing left to save
        send(number)
        assert had == [number], "afterwards it does what it did before"


class Ended(Exception):
    pass


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Any]]:
    """Signals by which this process would have killed itself, each with its handler at that time."""
    ended: list[tuple[int, Any]] = []

    def kill(_pid: int, number: int) -> None:
        ended.append((number, signal.getsignal(number)))
        raise Ended

    monkeypatch.setattr(stopping.os, "kill", kill)
    return ended


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fake time in seconds, which passes only where a test advances it."""
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_at_once_where_it_comes_later(
    ends: list[tuple[int, Any]], clock: list[float], first: signal.Signals, second: signal.Signals
) -> None:
    """make and the terminal send the same request twice; a later signal comes from an impatient user."""
    with request() as stop:
        send(first)
        clock[0] += 0.1
        send(second)
        assert (stop.signal, ends) == (first.name, [])
        clock[0] += 1.8
        if first == second == signal.SIGINT:  # Ctrl-C twice by hand
            with pytest.raises(Ended):
                send(second)
        else:
            send(second)
            assert ends == []
            clock[0] += 0.2
            with pytest.raises(Ended):
                send(second)
    assert ends == [(second, signal.SIG_DFL)]


def test_a_signal_to_save_is_no_first_and_no_second_one(
    ends: list[tuple[int, Any]], clock: list[float]
) -> None:
    """A scheduler sends SIGUSR2, and minutes later SIGTERM, to a run that is saving."""
    with request() as stop:
        send(signal.SIGUSR2)
        clock[0] += 60
        send(signal.SIGTERM)
        clock[0] += 60
        send(signal.SIGUSR2)
        assert ends == [] and stop.agreed(1)
        with pytest.raises(Ended):
            send(signal.SIGINT)


@pytest.mark.parametrize("asked_after", [0, 1, 3, 9])
def test_an_evaluation_stops_after_a_batch(asked_after: int) -> None:
    seen = []
    with request() as stop:
        if asked_after == 0:
            send(signal.SIGTERM)
        with pytest.raises(Stopped):
            for number in stop.watched(range(1, 20), common=10):
                seen.append(number)
                if number == asked_after:
                    send(signal.SIGTERM)
        assert seen == list(range(1, max(1, asked_after) + 1)) and stop.words == "SIGTERM"
    with request() as stop:  # after the batches that all processes have, a stop is not checked
        for number in stop.watched(range(1, 20), common=10):
            if number == 11:
                send(signal.SIGTERM)
    with request() as stop:
        assert list(stop.watched(range(5), common=3)) == list(range(5))


def test_a_launchers_processes_take_two_of_a_kind_for_one(
    ends: list[tuple[int, Any]], had: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with request() as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stop.agreed(1)
    send(signal.SIGINT)
    assert (ends, had) == ([], []), "nor does a third one end a process that has saved"


def test_a_signal_that_is_ignored_stays_so(had: list[int]) -> None:
    """Jobs in the background of a script ignore SIGINT, those under nohup SIGHUP; SIGTERM stops them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with request() as stop:
        send(signal.SIGINT)
        send(signal.SIGHUP)
        assert stop.signal is None
        send(signal.SIGTERM)
        assert stop.signal == "SIGTERM"
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_to_save_waits_before_training_and_after_it(had: list[int]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    send(signal.SIGUSR2)
    with request() as stop:
        assert stop.signal == "SIGUSR2"
    send(signal.SIGUSR2)
    assert had == []
    assert signal.SIGUSR2 in signal.sigpending()


def test_in_another_thread_only_the_deadline_counts() -> None:
    found: list[bool] = []

    def train() -> None:
        with StopRequest(CPU, Deadline("1s")) as stop:
            found.append(stop.agreed(1, save_seconds=1e6))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [True]


def test_the_deadline_is_named_and_leaves_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    class Soon:
        def passed(self, save_seconds: float) -> bool:
            asked.append(save_seconds)
            return save_seconds > 2

    deadline: Any = Soon()
    with StopRequest(CPU, deadline) as stop:
        assert not stop.agreed(1, save_seconds=1.5)
        assert stop.agreed(2, save_seconds=2.5)
        assert stop.signal == "run.time_limit"
    assert asked == [1.5, 2.5]


@pytest.mark.parametrize("others", [0.0, 1.0])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_processes_agree_and_one_is_enough(
    monkeypatch: pytest.MonkeyPatch, device: str, others: float
) -> None:
    """Each rank must ask the others at the same steps, whichever signals it has had: on a GPU every ten."""
    asked: list[float] = []

    def reduce(flag: torch.Tensor, op: Any) -> None:
        asked.append(float(flag))
        found = {dist.ReduceOp.MAX: max, dist.ReduceOp.MIN: min}[op](float(flag), others)
        flag.fill_(found)

    real = torch.tensor
    monkeypatch.setattr(stopping.torch, "tensor", lambda values, **_: real(values))
    monkeypatch.setattr(stopping.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(stopping.dist, "all_reduce", reduce)
    with StopRequest(torch.device(device), Deadline(None)) as stop:
        for step in range(1, 10):
            assert stop.agreed(step) == (bool(others) and device == "cpu")
        assert asked == ([0.0] * 9 if device == "cpu" else [])
        assert stop.agreed(10) == bool(others)
        send(signal.SIGTERM)
        assert stop.agreed(19) == (device == "cpu")
        assert stop.agreed(20)
