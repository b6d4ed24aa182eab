"""Fixtures for jobs on a real Slurm cluster with two nodes, submitted as users do; tests skip without one."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from conftest import TINY_RECIPE, TreeBuilder
from neuscale.data.prepare import prepare

PROGRAM = str(Path(sys.prefix, "bin", "neuscale"))
NODES = 2

# A step takes a few milliseconds, also where both nodes share the cores of one machine.
TRAIN = [*TINY_RECIPE, "tracking.trackers=[]", "train.log_every_steps=1", "eval.every_epochs=1000"]
ENDLESS = [*TRAIN, "train.epochs=1000000", "eval.every_epochs=1000000", "checkpoint.every_steps=40"]


def slurm(*command: str) -> str:
    """Standard output of a Slurm command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def nodes_are_idle() -> bool:
    states = slurm("sinfo", "--noheader", "--Node", "--format=%t").split()
    return len(states) >= NODES and set(states) == {"idle"}


def until(holds: Callable[[], object], seconds: float, says: Callable[[], str] = str) -> None:
    """Wait until `holds()` is true; after `seconds`, fail with the message `says()`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, says()
        time.sleep(0.05)


class BatchJob:
    """A job submitted by `neuscale submit`."""

    def __init__(self, number: str, runs: Path) -> None:
        self.number, self.runs = number, runs

    def log(self) -> str:
        """Output of all runs of the job."""
        return "\n".join(
            path.read_text() for path in sorted((self.runs / "jobs").glob(f"{self.number}*.log"))
        )

    def field(self, name: str) -> str:
        """A field of `scontrol show job`, for example JobState."""
        said = slurm("scontrol", "show", "job", "--oneliner", self.number)
        found = re.search(rf" {name}=(\S+)", f" {said}")
        assert found, said
        return found[1]

    def until(self, holds: Callable[[], object], seconds: float = 60) -> None:
        until(holds, seconds, lambda: f"{self.field('JobState')}: {self.log()}")

    def until_ended(self, seconds: float = 60) -> str:
        """Wait until the whole job has ended, and return its state."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.until(
            lambda: all(
                any(f"JobState={state}" in line for state in over)
                for line in slurm("scontrol", "show", "job", "--oneliner", self.number).splitlines()
            ),
            seconds,
        )
        return self.field("JobState")

    def until_steps(self, run: str, steps: int, seconds: float = 60) -> None:
        """Wait until the run has at least that many lines of metrics."""
        metrics = self.runs / run / "metrics.jsonl"
        self.until(lambda: metrics.exists() and metrics.read_text().count("\n") >= steps, seconds)

    def requeued(self, times: int = 1) -> bool:
        return self.field("Restarts") == str(times) and self.field("JobState") == "PENDING"

    def release(self) -> None:
        """Let a requeued job start in two seconds; Slurm would let it wait for two minutes.

        It cannot start at once: nodes refuse the credential of a job that comes back within the second in
        which it left.
        """
        slurm("scontrol", "update", f"JobId={self.number}", "StartTime=now+2")

    def ask_to_save(self) -> None:
        """Send SIGUSR2, as Slurm does before the time limit, at a moment that the test chooses."""
        slurm("scancel", "--batch", "--signal=USR2", self.number)

    def workers(self, run: str) -> list[psutil.Process]:
        """Training processes of the run, ordered by rank."""
        found = {}
        for process in psutil.process_iter():
            try:
                environment = process.environ() if f"run.name={run}" in process.cmdline() else {}
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if environment.get("RANK") and environment.get("SLURM_JOB_ID") == self.number:
                found[int(environment["RANK"])] = process
        return [found[rank] for rank in sorted(found)]

    def cancel(self) -> None:
        subprocess.run(["scancel", self.number], check=False, capture_output=True)
        until(nodes_are_idle, 60)


class Cluster:
    """The cluster with a scratch folder and a folder for each node's temporary files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch, self.runs = folder / "scratch", folder / "scratch" / "neuscale" / "runs"
        self.site = folder / "site.env"
        self.write_site()
        self.jobs: list[BatchJob] = []

    def write_site(self, **settings: object) -> None:
        """Write the site file of this cluster; the temporary folder of a node is named after the node."""
        lines = {"SCRATCH": self.scratch, "TMPDIR": f"{self.folder}/$SLURMD_NODENAME"}
        lines |= {"OMP_NUM_THREADS": 1, "NEUSCALE_SIF": "", "NEUSCALE_VENV": sys.prefix} | settings
        self.site.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def neuscale(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NEUSCALE_")}
        return subprocess.run(
            [PROGRAM, *words], env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    def submit(self, *words: str) -> BatchJob:
        # Slurm's time limits are in minutes and are checked twice a minute.
        options = ["--site", str(self.site), *words]
        if not any(word.startswith("--time") for word in words):
            options += ["--time=10m", "--lead=30s"]
        said = self.neuscale("submit", *options)
        assert said.returncode == 0, said.stderr
        found = re.search(r"^job (\d+)", said.stderr, flags=re.MULTILINE)
        assert found, said.stderr
        self.jobs.append(BatchJob(found[1], self.runs))
        return self.jobs[-1]


@pytest.fixture(scope="session")
def two_nodes() -> None:
    """Skip unless a Slurm cluster with two idle nodes is available."""
    if shutil.which("sbatch") is None:
        pytest.skip("no Slurm on this machine (no sbatch)")
    if subprocess.run(["sinfo"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Slurm controller answers (SLURM_CONF?)")
    if not nodes_are_idle():
        states = shlex.join(slurm("sinfo", "--noheader", "--Node", "--format=%N %t").splitlines())
        pytest.skip(f"wanted two idle nodes, and found {states}")


@pytest.fixture(scope="module")
def module_cluster(
    two_nodes: None, build_image_tree: TreeBuilder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The cluster, with the data set 'tiny' in its scratch folder."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    tree = build_image_tree(cluster.folder / "tree", train=20, val=7)
    prepare("image_folder", root=cluster.scratch / "neuscale" / "data", source=tree, save_as="tiny")
    yield cluster
    for job in cluster.jobs:
        job.cancel()


@pytest.fixture
def cluster(module_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster; jobs of the test are cancelled and the site file is restored afterwards."""
    yield module_cluster
    while module_cluster.jobs:
        module_cluster.jobs.pop().cancel()
    module_cluster.write_site()
