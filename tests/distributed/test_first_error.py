"""An error common to several ranks that another launcher started is shown exactly once."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from neuscale.distributed import worker_errors as first_error
from neuscale.distributed.worker_errors import show_once


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List of shown errors, for two processes, without a launcher's store and with little patience."""
    monkeypatch.setattr(first_error, "_PATIENCE", timedelta(seconds=0.5))
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return []


@pytest.fixture
def store(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The store of a launcher, with the environment variables that name it."""
    made = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(made.port))
    return made


def show(shown: list[str], name: str) -> Callable[[], None]:
    return lambda: shown.append(name)


def test_the_first_of_two_shows_it(store: TCPStore, shown: list[str]) -> None:
    show_once(show(shown, "first"))
    show_once(show(shown, "second"))
    assert shown == ["first"]


def test_processes_that_were_started_again_show_theirs(
    store: TCPStore, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_once(show(shown, "first"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    show_once(show(shown, "again"))
    assert shown == ["first", "again"]


def test_where_the_first_died_before_it_spoke_the_second_does(store: TCPStore, shown: list[str]) -> None:
    store.add("neuscale/failed/0", 1)
    show_once(show(shown, "second"))
    assert shown == ["second"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("TORCHELASTIC_USE_AGENT_STORE", "False"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "no port")],
)
def test_without_a_store_each_shows_its_own(
    store: TCPStore, shown: list[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    show_once(show(shown, "first"))
    show_once(show(shown, "second"))
    assert shown == ["first", "second"]
