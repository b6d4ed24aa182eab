"""Signals from a user or a scheduler to real training processes, and the state that they leave."""

import json
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from .conftest import TINY


def resume_command(said: Any) -> list[str]:
    """Arguments of the resume command that a stopped training printed, without the program name."""
    found = re.search(r"^Resume with: neuscale (train --resume .*)$", said.err, re.MULTILINE)
    assert found, said.err
    return shlex.split(found[1])


def end(neuscale: Callable[..., Any], runs: Path, said: Any) -> None:
    """Run the printed resume command for two more steps."""
    steps = json.loads((runs / "endless" / "manifest.json").read_text())["result"]["steps"]
    done = neuscale(*resume_command(said), f"train.max_steps={steps + 2}", "--json")
    assert done.code == 0, done.err
    assert (done.json["status"], done.json["steps"]) == ("finished", steps + 2)
    assert f"resuming at step {steps:,} of" in done.words


@pytest.fixture
def begin(neuscale: Callable[..., Any], start_endless: Callable[..., Any]) -> Callable[..., Any]:
    """`start_endless`, for tests that also use the in-process `neuscale`."""
    del neuscale  # has to be created before there are runs
    return start_endless


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_printed_command_goes_on(
    begin: Callable[..., Any], neuscale: Callable[..., Any], runs: Path, number: int
) -> None:
    process = begin()
    process.send(number)
    said = process.end()
    assert said.code == 75, said.err
    assert f"stopped by {signal.Signals(number).name} after step" in said.err
    assert (said.out, "Traceback" in said.err) == ("", False)
    end(neuscale, runs, said)


IGNORING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, "
IGNORING += "[sys.executable, '-m', 'neuscale', *sys.argv[1:]])"


def test_in_the_background_of_a_script_a_ctrl_c_is_ignored_and_sigterm_saves(
    begin: Callable[..., Any], runs: Path
) -> None:
    """A script's `neuscale train … &` ignores SIGINT, because Ctrl-C is meant for the foreground process."""
    process = begin(program=("-c", IGNORING))
    metrics = runs / "endless" / "metrics.jsonl"
    process.send(signal.SIGINT)
    process.send(signal.SIGINT)
    seen = len(metrics.read_text())
    process.until(lambda: len(metrics.read_text()) > seen + 1000)
    process.send(signal.SIGTERM)
    said = process.end()
    assert said.code == 75, said.err
    assert "stopped by SIGTERM after step" in said.err


def test_a_signal_to_save_waits_from_the_beginning(neuscale: Callable[..., Any]) -> None:
    """SIGUSR2 is blocked from the start; sent during imports, it would otherwise end the run unsaved."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    try:
        assert neuscale("train", "--print-config").code == 0
        assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_two_signals_of_one_request_save(begin: Callable[..., Any], runs: Path) -> None:
    """GNU make and the terminal each send a signal for the same Ctrl-C; together they are one request."""
    process = begin()
    process.send(signal.SIGINT)
    process.send(signal.SIGTERM)
    said = process.end()
    assert said.code == 75, said.err
    assert json.loads((runs / "endless" / "manifest.json").read_text())["status"] == "stopped"


# A training that takes 20 s to save.
SLOW_SAVE = """
import sys, time
from neuscale.training.checkpoint import CheckpointFolder
save = CheckpointFolder.save
CheckpointFolder.save = lambda *words, **named: (time.sleep(20), save(*words, **named))[1]
sys.argv = ["neuscale", *sys.argv[1:]]
from neuscale.__main__ import main
main()
"""


def test_a_second_ctrl_c_ends_at_once(begin: Callable[..., Any], runs: Path) -> None:
    process = begin(program=("-c", SLOW_SAVE))
    process.send(signal.SIGINT)
    time.sleep(0.5)
    process.send(signal.SIGINT)
    assert process.end(10).code in (-signal.SIGINT, -signal.SIGTERM)
    assert json.loads((runs / "endless" / "manifest.json").read_text())["status"] == "running"


def test_all_processes_stop_together_and_the_printed_command_goes_on(
    begin: Callable[..., Any], neuscale: Callable[..., Any], runs: Path
) -> None:
    """Workers get one Ctrl-C twice, from the terminal and the launcher; it does not count as a second one."""
    process = begin("--processes", "2")
    workers = process.workers()
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(signal.SIGINT)
    process.send(signal.SIGINT)
    said = process.end()
    assert said.code == 75, said.err
    assert said.err.count("stopped by SIGINT after step") == 1
    assert not [worker for worker in workers if worker.is_running()]
    assert resume_command(said)[-2:] == ["--processes", "2"]
    end(neuscale, runs, said)


def test_a_second_signal_to_the_launcher_kills_the_workers(begin: Callable[..., Any]) -> None:
    process = begin("--processes", "2")
    workers = process.workers()
    workers[0].suspend()  # simulates a worker that hangs and does not save
    process.send(signal.SIGINT)
    process.send(signal.SIGTERM)
    said = process.end(30)
    assert said.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert "before it could save" in said.words
    assert not psutil.wait_procs(workers, timeout=5)[1]


def test_a_launcher_stopped_before_training_has_begun_does_not_claim_to_have_saved(
    start: Callable[..., Any], runs: Path
) -> None:
    process = start("train", *TINY, "--processes", "2")
    process.until(lambda: len(process.workers()) == 2)
    process.send(signal.SIGTERM)
    said = process.end()
    assert said.code == 128 + signal.SIGTERM, said.err
    assert "stopped by SIGTERM before it could save" in said.words
    assert not runs.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_the_workers_of_a_killed_launcher_save_and_end(
    begin: Callable[..., Any], neuscale: Callable[..., Any], runs: Path
) -> None:
    """Workers end, instead of running on for days on GPUs that their user believes to be free."""
    process = begin("--processes", "2")
    workers = process.workers()
    process.send(signal.SIGKILL)
    assert not psutil.wait_procs(workers, timeout=30)[1]
    manifest = json.loads((runs / "endless" / "manifest.json").read_text())
    assert manifest["status"] == "stopped"
    steps = manifest["result"]["steps"]
    done = neuscale("train", "--resume", "endless", f"train.max_steps={steps + 2}", "--json")
    assert (done.code, done.json["steps"]) == (0, steps + 2), done.err


def test_a_killed_worker_is_named_and_the_other_ended(begin: Callable[..., Any]) -> None:
    process = begin("--processes", "2")
    workers = {int(worker.environ()["RANK"]): worker for worker in process.workers()}
    workers[0].suspend()  # simulates a worker that waits on a GPU for the other and handles no signal
    workers[1].kill()
    said = process.end(30)
    assert said.code == 1
    assert "error: process 1 of 2 was ended by SIGKILL" in said.words
    assert "memory ran out" in said.words
    assert said.err.count("error:") == 1
    assert not [worker for worker in workers.values() if worker.is_running()]


def test_a_killed_main_process_is_named_and_the_other_ended(begin: Callable[..., Any]) -> None:
    """The other process loses its connection, which is not reported as a second error."""
    process = begin("--processes", "2")
    workers = {int(worker.environ()["RANK"]): worker for worker in process.workers()}
    workers[0].kill()
    said = process.end(30)
    assert said.code == 1
    assert "error: process 0 of 2 was ended by SIGKILL" in said.words
    assert said.err.count("error:") == 1
    assert not workers[1].is_running()


def test_what_the_workers_cannot_do_is_said_once(start: Callable[..., Any], runs: Path) -> None:
    said = start("train", *TINY, "model.patch_size=3", "--processes", "2").end()
    assert said.code == 2
    assert said.err.count("an image of 8 pixels does not divide into patches of 3") == 1
    assert said.err.count("error:") == 1
    assert "Traceback" not in said.err


def test_torchrun_starts_it_too(begin: Callable[..., Any], runs: Path) -> None:
    """Another launcher may start the processes, as on a cluster."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "neuscale"]
    process = begin(program=tuple(words))
    workers = process.workers()
    assert len(workers) == 2
    process.send(signal.SIGTERM)
    process.end()
    manifest = json.loads((runs / "endless" / "manifest.json").read_text())
    assert (manifest["status"], manifest["machine"]["processes"]) == ("stopped", 2)
    assert [path.name for path in runs.iterdir()] == ["endless"]
