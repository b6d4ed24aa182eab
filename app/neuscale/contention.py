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
    """CPU time so far, in seconds: of this process and of its cores; each thread's waiting for a core."""

    time: float
    ran: float
    busy: float
    waited: dict[str, float]

    @classmethod
    def now(cls, cpus: frozenset[int]) -> "Look":
        """A look at this moment, at the cores `cpus`. Raises OSError or ValueError without /proc."""
        waited = {}
        for task in Path("/proc/self/task").iterdir():
            try:
                waited[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
            except (FileNotFoundError, ProcessLookupError):  # the thread has ended
                continue
        return cls(time.monotonic(), time.process_time(), _busy_seconds(cpus), waited)

    def waited_cores(self, before: "Look") -> float:
        """Threads that waited for a core since `before`, on average."""
        waited = sum(
            self.waited[task] - before.waited[task] for task in self.waited.keys() & before.waited.keys()
        )
        return waited / max(self.time - before.time, 1e-9)

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

    def __init__(self, parallel: Callable[..., object], size: int) -> None:
        self._parallel, self._size = parallel, size
        self._end, self._ready = threading.Event(), threading.Event()
        # A thread of its own has a team of its own, which ends with it.
        self._thread = threading.Thread(target=self._hold, name="idle-team", daemon=True)
        self._thread.start()
        self._ready.wait()

    def _hold(self) -> None:
        try:
            # A compiler makes this call of `#pragma omp parallel`; each thread calls free(NULL): nothing.
            self._parallel(ctypes.CDLL(None).free, None, self._size, 0)
        finally:
            self._ready.set()
        self._end.wait()

    def end(self) -> None:
        self._end.set()
        self._thread.join()


class AdaptiveWaiting:
    """Makes OpenMP's threads sleep while other programs use this process's cores, and spin otherwise.

    `parallel`: libgomp's GOMP_parallel. `report` is called with a line of text when it is first busy.
    """

    def __init__(self, parallel: Callable[..., object], report: Callable[[str], None]) -> None:
        self._parallel, self._report = parallel, report
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
        except (OSError, ValueError, RuntimeError):  # no /proc, one of another form, or no more threads
            return

    def consider(self, look: Look, before: Look) -> None:
        """Choose between sleeping and spinning by what happened between two looks."""
        if self._team is None:
            self._late = self._late + 1 if look.waited_cores(before) > _WAITED else 0
            if self._late >= _LATE and _can_start(len(self._cpus) + 1):
                self._team, self._quiet = _IdleTeam(self._parallel, len(self._cpus)), 0
                if not self._reported and look.others(before) >= _OTHERS:
                    self._reported = True
                    self._report(busy_words(look.others(before), len(self._cpus)))
            return
        quiet = look.others(before) < _OTHERS and look.waited_cores(before) <= _WAITED
        self._quiet = self._quiet + 1 if quiet else 0
        if self._quiet >= _QUIET:
            self._team.end()
            self._team, self._late = None, 0


def busy_words(others: float, cores: int) -> str:
    """A line that says how busy this machine is."""
    return f"other processes use {others:.1f} of the {cores} cores here: until they end, this is slower"


_ACTIVE = threading.Lock()
_CHOSEN = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_PROC_BIND", "OMP_DYNAMIC"}


@contextmanager
def adaptive_waiting(report: Callable[[str], None], device: str = "cpu") -> Iterator[None]:
    """Adapt the waiting of OpenMP's threads inside the block, where torch computes with libgomp on Linux.

    Nothing is changed where the user has chosen how OpenMP's threads wait or where they run, or with one
    thread, or on another `device` than the CPU. A block inside another leaves it to the outer one.
    """
    import torch

    parallel = None
    if device == "cpu" and not _CHOSEN & os.environ.keys() and torch.get_num_threads() > 1:
        parallel = _gomp_parallel()
    if parallel is None or not _ACTIVE.acquire(blocking=False):
        yield
        return
    try:
        waiting = AdaptiveWaiting(parallel, report)
        try:
            waiting.start()
        except RuntimeError:  # no more threads can be started
            yield
            return
        try:
            yield
        finally:
            waiting.stop()
    finally:
        _ACTIVE.release()


def _gomp_parallel() -> Callable[..., object] | None:
    """GOMP_parallel of the libgomp that torch has loaded; None where it uses another OpenMP."""
    import torch

    try:
        lines = os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines()
    except OSError:
        return None
    names = {Path(line.split(maxsplit=5)[-1]) for line in lines if "/libgomp" in line}
    # Other packages may bring one of their own, such as scikit-learn's.
    home = Path(torch.__file__).resolve().parent
    homes = {home, home / "lib", home.parent / "torch.libs"}
    for name in sorted(names, key=lambda each: each.parent not in homes):
        try:
            found: Callable[..., object] = ctypes.CDLL(str(name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return found
    return None
