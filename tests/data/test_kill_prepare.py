"""`neuscale data prepare`, killed at random moments, leaves only whole data, and a rerun repairs the rest."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ArchiveBuilder, TreeBuilder
from neuscale.data.datasets import prepared_names
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.prepare import prepare

APP = Path(__file__).parents[2] / "app"
ROUNDS = 30

# Starting Python takes longer than packing, so this process is started once. For each line of stdin it
# forks a child that runs the command, kills it after the given seconds, and prints how it ended.
FORKS = """
import os, signal, sys, time
from neuscale.cli import run
import neuscale.cli.progress, neuscale.data.formats.write_image_tree, neuscale.data.prepare

print("ready", flush=True)
for line in sys.stdin:
    seconds, *words = line.split()
    child = os.fork()
    if child == 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os._exit(run(words))
    if seconds != "never":
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)  # one that has ended is there until it is waited for
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Process that forks a child for each command of `neuscale`."""

    def __init__(self, root: Path, errors: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            env={**os.environ, "PYTHONPATH": str(APP), "NEUSCALE_DATA": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors.open("w"),
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, words: list[str], seconds: float | None = None) -> int:
        """Run a command, kill it after `seconds` and return its exit code, or minus the signal."""
        assert self.process.stdin is not None
        print("never" if seconds is None else seconds, *words, file=self.process.stdin, flush=True)
        return int(self.line())


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    started = Forks(tmp_path / "data", tmp_path / "errors")
    yield started
    started.process.communicate(timeout=60)


def names(root: Path) -> set[str]:
    return {path.name for path in (root / "packed").iterdir()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_killed_at_random_moments(
    forks: Forks, build_tiny_imagenet: TreeBuilder, build_archive: ArchiveBuilder, tmp_path: Path
) -> None:
    tree = build_tiny_imagenet(tmp_path / "zip" / "tiny-imagenet-200", train=300, side=64)
    archive = build_archive(tree.parent, tmp_path / "tiny-imagenet-200.zip")
    right = prepare("tiny_imagenet", root=tmp_path / "right", source=archive).meta
    root = tmp_path / "data"
    words = ["data", "prepare", "tiny_imagenet", "--source", str(archive), "--force"]
    began = time.perf_counter()
    assert forks.run(words) == 0, (tmp_path / "errors").read_text()
    whole = time.perf_counter() - began

    moments = random.Random(0)
    folder = root / "packed" / "tiny_imagenet"
    seen = {"nothing": 0, "whole": 0, "leftovers": 0}
    for number in range(ROUNDS):
        older = number % 2 == 1
        if older and not folder.exists():
            shutil.copytree(tmp_path / "right" / "packed" / "tiny_imagenet", folder)
        elif not older:
            shutil.rmtree(folder, ignore_errors=True)
        code = forks.run(words, moments.uniform(0, 1.05 * whole))
        assert code in (0, -signal.SIGKILL), (tmp_path / "errors").read_text()
        assert not (older or code == 0) or prepared_names(root) == ["tiny_imagenet"]
        if prepared_names(root):
            data = PackedDataset.open(folder)
            assert data.verify() == [] and data.meta.fingerprint == right.fingerprint
        seen["whole" if prepared_names(root) else "nothing"] += code != 0
        seen["leftovers"] += any(".partial-" in name for name in names(root))
    assert min(seen.values()) >= 3, seen

    shutil.rmtree(folder, ignore_errors=True)
    assert forks.run(words[:-1]) == 0, (tmp_path / "errors").read_text()
    data = PackedDataset.open(folder)
    assert data.verify() == [] and data.meta.fingerprint == right.fingerprint
    assert names(root) == {"tiny_imagenet", ".tiny_imagenet.lock"}
