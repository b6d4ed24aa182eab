"""Train the runs of a sweep as subprocesses: one per place, which is a free GPU or a share of the cores."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from neuscale.distributed.launch import POLL_SECONDS, SAVE_SECONDS
from neuscale.distributed.signals import END_WITH_PARENT, STOP_SIGNALS
from neuscale.errors import EXIT_RESUME, UsageError, disk_error
from neuscale.hardware import available_cores, free_gpus, gpu_count
from neuscale.program import program
from neuscale.progress import Progress
from neuscale.sweep.folder import PlannedRun, Sweep, best_words

# By name: a run, the environment variables of its place, and its process.
_Running = dict[str, tuple[PlannedRun, dict[str, str], "subprocess.Popen[bytes]"]]


@dataclass(frozen=True)
class Swept:
    """`failed`: names of the runs that failed; `stopped_by`: the signal that stopped the sweep, or None."""

    failed: list[str]
    stopped_by: str | None


def choose_places(jobs: int | None, on_cpu: bool) -> list[dict[str, str]]:
    """Environment variables of each concurrent process. Raises UsageError if not enough GPUs are free."""
    there = 0 if on_cpu else gpu_count()
    if there:
        free = free_gpus()
        if not free:
            raise UsageError(
                f"other processes use the {there} GPU{'s' if there > 1 else ''} of this machine.",
                "Wait for them, or train on the CPU: run.device=cpu.",
            )
        if jobs is not None and jobs > len(free):
            raise UsageError(
                f"`jobs` {jobs}: {len(free)} of this machine's {there} GPUs are free, and each run has one.",
                f"Set `jobs` to {len(free)}, or remove it.",
            )
        return [{"CUDA_VISIBLE_DEVICES": gpu} | _threads(len(free[:jobs])) for gpu in free[:jobs]]
    return [_threads(jobs or 1)] * (jobs or 1)


def run_sweep(sweep: Sweep, places: list[dict[str, str]], progress: Progress) -> Swept:
    """Train the runs that are not finished; a run that fails is reported, and the others continue.

    After the first SIGINT, SIGTERM or SIGHUP the runs get SIGTERM, so that they save; a second signal
    kills them.
    """
    waiting = [run for run in sweep.runs if not run.finished]
    count, done = len(sweep.runs), len(sweep.runs) - len(waiting)
    free, failed = list(places), list[str]()
    running: _Running = {}
    if done:
        progress.message(f"{done} of {count} runs are finished")
    with _signals(running) as received:
        deadline = float("inf")
        while running or (waiting and not received):
            while waiting and free and not received:
                run = waiting.pop(0)
                place = free.pop()
                running[run.name] = (run, place, _start(sweep, run, place))
                if received:  # meanwhile, when it was not among those that were told
                    _send(running, signal.SIGTERM)
                progress.message(f"{run.name}: {' '.join(_own(sweep, run))}")
            for name, (run, place, process) in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[name]
                free.append(place)
                done += run.finished
                if run.finished:
                    best = best_words(run.manifest.get("result") or {})
                    progress.message(f"{name} is finished: best {best or 'not known'}; {done} of {count} are")
                elif code != EXIT_RESUME and not received:
                    failed.append(name)
                    progress.warning(f"{name} failed ({_last_words(sweep, run, code)}); see {sweep.log(run)}")
            if received and deadline == float("inf"):
                progress.message("stopping: the runs save")
                deadline = time.monotonic() + SAVE_SECONDS
            if time.monotonic() > deadline:
                _send(running, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
    return Swept(failed, signal.Signals(received[0]).name if received else None)


def _threads(jobs: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // jobs)))}


def _start(sweep: Sweep, run: PlannedRun, place: dict[str, str]) -> "subprocess.Popen[bytes]":
    # With --resume, a run that has started is resumed, and any other is started.
    command = program("train", *run.words, f"run.name={run.name}", "--resume")
    try:
        with sweep.log(run).open("ab") as log:
            # In a separate session, it gets a Ctrl-C of the terminal only once, from this process.
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | place,
                start_new_session=True,
                preexec_fn=END_WITH_PARENT,
            )
    except OSError as error:
        raise disk_error(error, sweep.path) from error


def _own(sweep: Sweep, run: PlannedRun) -> list[str]:
    """The overrides in which a run differs from the others."""
    return [word for word in run.words if word.partition("=")[0] in sweep.fields]


def _last_words(sweep: Sweep, run: PlannedRun, code: int) -> str:
    """The last error in a run's log, else its signal or exit code."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = sweep.log(run).read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return errors[-1].removeprefix("error: ").rstrip(".") if errors else f"exit code {code}"


@contextmanager
def _signals(running: _Running) -> Iterator[list[int]]:
    """Context that yields the list of received signals; no process in `running` outlives it."""
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        _send(running, signal.SIGTERM if len(received) == 1 else signal.SIGKILL)

    handled = [n for n in STOP_SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # as under nohup
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        yield received
    finally:
        _send(running, signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(running: _Running, number: int) -> None:
    for _, _, process in list(running.values()):
        if process.poll() is None:
            process.send_signal(number)
