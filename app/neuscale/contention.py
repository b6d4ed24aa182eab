"""Waiting of OpenMP's threads, adapted to a machine that other programs use as well.

torch computes on the CPU with a team of OpenMP threads that meet at a barrier thousands of times a step. GNU
OpenMP (libgomp), which torch's Linux builds contain, lets a thread that is early spin for about a
millisecond before it sleeps. On an idle machine this is fastest. Where another program runs on one of the
cores, the late thread is not running, and the early ones burn the cores that it could run on: training falls
to a small part of its speed. libgomp sleeps almost at once while a process has more OpenMP threads than
cores ("throttled", `gomp_throttled_spin_count_var` in its config/linux/wait.h and env.c). `AdaptiveWaiting`
brings that about with a second team that does nothing, and ends it when the machine is idle again. What is
computed, and by how many threads, does not change: results keep their bits.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PERIOD = 0.5  # seconds between two looks at the machine

# Seconds, of each second, that threads of this process are ready to run and wait for a core. Alone on its
# cores a process stays far below it; one late thread is enough to keep all others waiting.
_WAITED, _LATE = 0.15, 2  # in so many looks, one after the other
# Cores that others use: below it, in so many looks, the machine is idle again.
_OTHERS, _QUIET = 0.25, 4


@dataclass(frozen=True)
class Look:
    """CPU time so far, in seconds: of this process's threads, their waiting for a core, all of the cores."""

    time: float
    ran: float
    waited: float
    busy: float

    @classmethod
    def now(cls, cpus: frozenset[int]) -> "Look":
        """A look at this moment, at the cores `cpus`. Raises OSError or ValueError without /proc."""
        ran = waited = 0
        for task in Path("/proc/self/task").iterdir():
            try:
                words = (task / "schedstat").read_text().split()
            except FileNotFoundError:  # the thread has ended
                continue
            ran, waited = ran + int(words[0]), waited + int(words[1])
        return cls(time.monotonic(), ran / 1e9, waited / 1e9, _busy_seconds(cpus))

    def waited_cores(self, before: "Look") -> float:
        """Threads that waited for a core since `before`, on average."""
        return (self.waited - before.waited) / max(self.time - before.time, 1e-9)

    def others(self, before: "Look") -> float:
        """Cores that other processes used since `before`, on average."""
        seconds = max(self.time - before.time, 1e-9)
        return max(0.0, (self.busy - before.busy - (self.ran - before.ran)) / seconds)


def _busy_seconds(cpus: frozenset[int]) -> float:
    """Seconds that `cpus` have not been idle since the machine started (proc(5), /proc/stat)."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _idle, _iowait, irq, softirq, *steal = map(int, values[:8])
            ticks += user + nice + system + irq + softirq + sum(steal)
    return ticks / os.sysconf("SC_CLK_TCK")


def other_load(seconds: float = 0.2) -> float | None:
    """Cores that other processes use, measured for `seconds`; None where the system does not tell."""
    try:
        cpus = frozenset(os.sched_getaffinity(0))
        before = Look.now(cpus)
        time.sleep(seconds)
        return Look.now(cpus).others(before)
    except (AttributeError, OSError, ValueError):
        return None


def _can_start(threads: int) -> bool:
    """True if so many more threads can be started at once; libgomp would end the process if they cannot."""
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(threads):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        end.set()
        for thread in started:
            thread.join()
    return True


class _IdleTeam:
    """OpenMP threads that do nothing, one for each core: while they are there, libgomp throttles spinning."""

    def __init__(self, libgomp: Path, size: int) -> None:
        self._libgomp, self._size = libgomp, size
        self._end, self._ready = threading.Event(), threading.Event()
        # A thread of its own has a team of its own, which ends with it.
        self._thread = threading.Thread(target=self._hold, name="idle-team", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _hold(self) -> None:
        # A compiler makes this call of `#pragma omp parallel`; here each thread calls free(NULL): nothing.
        nothing = ctypes.CDLL(None).free
        ctypes.CDLL(str(self._libgomp)).GOMP_parallel(nothing, None, self._size, 0)
        self._ready.set()
        self._end.wait()

    def end(self) -> None:
        self._end.set()
        self._thread.join()


class AdaptiveWaiting:
    """Has OpenMP's threads sleep while other programs use this process's cores, and spin while they do not.

    `report` is called with a line of text when the machine first turns out to be busy.
    """

    def __init__(self, libgomp: Path, report: Callable[[str], None]) -> None:
        self._libgomp, self._report = libgomp, report
        self._cpus = frozenset(os.sched_getaffinity(0))
        self._team: _IdleTeam | None = None
        self._reported = False
        self._late = self._quiet = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="adaptive-waiting", daemon=True)

    @property
    def sleeps(self) -> bool:
        """True while threads that wait sleep."""
        return self._team is not None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        if self._team is not None:
            self._team.end()
            self._team = None

    def _watch(self) -> None:
        try:
            before = Look.now(self._cpus)
            while not self._end.wait(PERIOD):
                look = Look.now(self._cpus)
                self.consider(look, before)
                before = look
        except (OSError, ValueError):  # no /proc, or one of another form
            return

    def consider(self, look: Look, before: Look) -> None:
        """Choose between sleeping and spinning by what happened between two looks."""
        if self._team is None:
            self._late = self._late + 1 if look.waited_cores(before) > _WAITED else 0
            if self._late >= _LATE and _can_start(len(self._cpus) + 1):
                self._team, self._quiet = _IdleTeam(self._libgomp, len(self._cpus)), 0
                if not self._reported:
                    self._reported = True
                    self._report(busy_words(look.others(before), len(self._cpus)))
            return
        self._quiet = self._quiet + 1 if look.others(before) < _OTHERS else 0
        if self._quiet >= _QUIET:
            self._team.end()
            self._team, self._late = None, 0


def busy_words(others: float, cores: int) -> str:
    """A line that says how busy this machine is."""
    return f"other programs use {others:.1f} of the {cores} cores here: until they end, this is slower"


_ACTIVE = threading.Lock()


@contextmanager
def adaptive_waiting(report: Callable[[str], None]) -> Iterator[None]:
    """Adapt the waiting of OpenMP's threads inside the block, where torch computes with libgomp on Linux.

    Nothing is changed where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, or with one thread. A block inside
    another leaves it to the outer one.
    """
    import torch

    chosen = "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ
    libgomp = None if chosen or torch.get_num_threads() < 2 else _loaded_libgomp()
    if libgomp is None or not _ACTIVE.acquire(blocking=False):
        yield
        return
    waiting = AdaptiveWaiting(libgomp, report)
    try:
        waiting.start()
        yield
    finally:
        waiting.stop()
        _ACTIVE.release()


def _loaded_libgomp() -> Path | None:
    """File of the libgomp that this process has loaded; torch's Linux builds bring one."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    names = (line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line)
    return next(map(Path, names), None)
