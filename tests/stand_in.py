"""Fake `neuscale` program for tests of launchers and sweeps: it starts fast and runs the lines of a test."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 12  # timeout for operations that normally take a fraction of a second

_BEGINNING = f"""
import json, os, signal, sys, time
from pathlib import Path

signal.alarm({SECONDS})  # whatever goes wrong, it ends
words, env, here = sys.argv[1:], os.environ, Path(__file__).parents[1]
rank = int(env.get("RANK", "0"))
name = next((word[9:] for word in words if word.startswith("run.name=")), str(rank))

def note(text):
    with (here / f"{{name}}.said").open("a") as said:
        said.write(f"{{text}}\\n")

def on(number, act=lambda: None):
    def handle(number, _frame):
        note(signal.Signals(number).name)
        act()
    signal.signal(number, handle)

def wait_for(*lines):
    while True:
        said = "".join(path.read_text() for path in here.glob("*.said")).split()
        if all(said.count(line) >= lines.count(line) for line in lines):
            return
        time.sleep(0.01)

def begun():
    facts = {{"words": words, "env": dict(env), "ignores": [n.name for n in signal.Signals
              if signal.getsignal(n) == signal.SIG_IGN], "session": os.getsid(0), "pid": os.getpid()}}
    (here / f".{{name}}").write_text(json.dumps(facts))
    (here / f".{{name}}").rename(here / f"{{name}}.json")

"""


class StandIn:
    """Fake `neuscale` package in a folder, where its processes record their start and their notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def does(self, *lines: str) -> None:
        """Write the program that each process runs; call `begun()` in it to record how it was started."""
        (self.folder / "neuscale").mkdir(exist_ok=True)
        (self.folder / "neuscale" / "__init__.py").touch()
        program = _BEGINNING + "\n".join(lines) + "\n"
        (self.folder / "neuscale" / "__main__.py").write_text(program)

    def started(self, name: object) -> dict[str, Any]:
        """Arguments, environment, ignored signals, session and PID of the process of a rank or run name."""
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return found

    def begun(self) -> list[str]:
        """Ranks or run names of the processes that have called `begun()`."""
        return sorted(path.stem for path in self.folder.glob("[!.]*.json"))

    def said(self, name: object) -> list[str]:
        path = self.folder / f"{name}.said"
        return path.read_text().splitlines() if path.exists() else []


def until(holds: Callable[[], object]) -> None:
    """Wait until `holds()` is true; fail after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send(number: int) -> None:
    """Send a signal to the main thread of this process, which runs the handler and may have it blocked."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Run `act` in a thread while the `with` block runs; afterwards re-raise its exception."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def signals_survived() -> Iterator[list[int]]:
    """Yield the list of signals that no other handler took; restore signal mask and handlers afterwards."""
    unhandled: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    before = {number: signal.signal(number, lambda n, _frame: unhandled.append(n)) for number in numbers}
    try:
        yield unhandled
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # discard a signal that is blocked and pending
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def make_programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> Path:
    """Write bash scripts, first on PATH; each call appends a line with its arguments to NAME.called."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "$*" >>"{folder}/{name}.called"\n{script}\n')
        path.chmod(0o755)
    if str(folder) not in os.environ["PATH"].split(os.pathsep):
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def calls(folder: Path, name: str) -> list[str]:
    """Arguments of each call of a script made by `make_programs`."""
    path = folder / f"{name}.called"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Fake `neuscale` for subprocesses started in the test; signals to this process do not end the test."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMP_", "NEUSCALE_"))]:
        monkeypatch.delenv(name)
    with signals_survived():
        yield StandIn(folder)
