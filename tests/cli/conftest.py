"""Fixtures for the command line: run in this process where that is enough, else in a subprocess."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import Said
from neuscale.cli import run
from neuscale.data.prepare import prepare

# A real training with steps of a few milliseconds.
TINY = [
    "data=image_folder",
    "data.name=tiny",
    "model.embed_dim=8",
    "model.depths=[1,1]",
    "model.num_heads=[1,1]",
    "model.patch_size=2",
    "model.window_size=2",
    "augment.crop_padding=1",
    "train.global_batch_size=12",
    "run.device=cpu",
]
# Never ends by itself, and writes a line of metrics.jsonl per step.
ENDLESS = ["train.epochs=1000000", "eval.every_epochs=1000000", "checkpoint.every_steps=1000000"]
ENDLESS += ["train.log_every_steps=1", "tracking.trackers=[]"]


@pytest.fixture(scope="session")
def tiny_data(build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder with 'tiny' (60 training and 21 validation images) and 'single' (12 and 1)."""
    folder = tmp_path_factory.mktemp("tiny")
    tree = build_image_tree(folder / "tree", train=20, val=7)
    prepare("image_folder", root=folder / "data", source=tree, save_as="tiny")
    tree = build_image_tree(folder / "one", classes=("only", "other"), train=6, val=1)
    shutil.rmtree(tree / "val" / "other")
    prepare("image_folder", root=folder / "data", source=tree, save_as="single")
    return folder / "data"


@pytest.fixture
def runs(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the runs folder, not created yet; the environment names it and the data folder."""
    monkeypatch.setenv("NEUSCALE_DATA", str(tiny_data))
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("NEUSCALE_DEBUG", raising=False)
    return tmp_path / "runs"


@pytest.fixture
def neuscale(runs: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """A function that runs a command line in this process."""
    assert not runs.exists()

    def command(*words: str) -> Said:
        capfd.readouterr()
        code = run(list(words))
        return Said(code, *capfd.readouterr())

    return command


@pytest.fixture
def train(neuscale: Callable[..., Said]) -> Callable[..., Said]:
    """A function that runs `neuscale train` with the tiny model."""
    return lambda *words: neuscale("train", *TINY, *words)


@pytest.fixture
def tiny_words() -> list[str]:
    """Overrides of the tiny model, for tests that start a subprocess."""
    return TINY


@pytest.fixture(scope="session")
def finished_runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with the finished run 'done': 3 epochs of 5 steps, 3 checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEUSCALE_DATA", str(tiny_data))
        patch.setenv("NEUSCALE_RUNS", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        words = ["train", *TINY, "train.epochs=3", "checkpoint.keep_last=9", "run.name=done", "--json"]
        assert run(words) == 0
    return folder


@pytest.fixture
def done(finished_runs: Path, neuscale: Callable[..., Said], runs: Path) -> Path:
    """A copy of the finished run 'done' that a test may change."""
    del neuscale  # it asserts that the runs folder does not exist yet
    shutil.copytree(finished_runs, runs)
    return runs / "done"


class Process:
    """A `neuscale` subprocess."""

    def __init__(self, words: list[str], folder: Path, program: tuple[str, ...]) -> None:
        folder.mkdir(parents=True)
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.popen = subprocess.Popen(
                [sys.executable, *program, *words], stdout=out, stderr=err, start_new_session=True
            )

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children()

    def send(self, number: int) -> None:
        self.popen.send_signal(number)

    def until(self, holds: Callable[[], Any], seconds: float = 120) -> None:
        """Wait until `holds()`; fail if the process ends first or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.popen.poll() is None, self._err.read_text()
            assert time.monotonic() < deadline, self._err.read_text()
            time.sleep(0.02)

    def end(self, seconds: float = 60) -> Said:
        code = self.popen.wait(seconds)
        return Said(code, self._out.read_text(), self._err.read_text())


@pytest.fixture
def start(runs: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """A function that starts `neuscale WORDS` as a subprocess, killed with its children after the test."""
    del runs  # for the environment that it sets
    started: list[Process] = []

    def begin(*words: str, program: tuple[str, ...] = ("-m", "neuscale")) -> Process:
        started.append(Process(list(words), tmp_path / f"process{len(started)}", program))
        return started[-1]

    yield begin
    for process in started:
        if process.popen.poll() is None:
            # All descendants, because torchrun's workers are in process groups of their own.
            for child in psutil.Process(process.popen.pid).children(recursive=True):
                child.kill()
            process.popen.kill()
            process.popen.wait()


@pytest.fixture
def start_endless(start: Callable[..., Process], runs: Path) -> Callable[..., Process]:
    """A function that starts an endless training and returns after its first logged step."""

    def begin(*words: str, program: tuple[str, ...] = ("-m", "neuscale")) -> Process:
        process = start("train", *TINY, *ENDLESS, "run.name=endless", *words, program=program)
        metrics = runs / "endless" / "metrics.jsonl"
        process.until(lambda: metrics.exists() and metrics.read_text())
        return process

    return begin
