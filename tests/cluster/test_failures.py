"""Failures on one of several nodes are reported at once or recovered from."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from cluster.conftest import ENDLESS, TRAIN, Cluster, nodes_are_idle, slurm, until

pytestmark = pytest.mark.cluster

NODES = ("n1", "n2")


def test_each_node_copies_the_data_once_and_a_killed_rank_fails_the_job(cluster: Cluster) -> None:
    """The error names the killed rank at once, not after the half hour for which the others would wait."""
    job = cluster.submit(*ENDLESS, "run.name=killed", "--nodes=2", "--processes=2", "--cpus=2")
    copies = {
        node: cluster.folder / node / "neuscale" / "packed" / "tiny" / "train_images.npy" for node in NODES
    }
    job.until(lambda: all(path.exists() for path in copies.values()))
    inodes = {node: path.stat().st_ino for node, path in copies.items()}
    job.until_steps("killed", 20)
    # A launcher and two ranks on each node have requested the copy.
    assert {node: path.stat().st_ino for node, path in copies.items()} == inodes
    assert "not staged" not in job.log()
    (_, _, _, last) = job.workers("killed")
    began = time.monotonic()
    last.kill()
    assert job.until_ended(30) == "FAILED"
    assert time.monotonic() - began < 30
    assert "process 3 of 4 on n2 was ended by SIGKILL." in job.log()
    assert len(re.findall(r"^error: ", job.log(), flags=re.MULTILINE)) == 1, job.log()
    assert job.field("Restarts") == "0"


def test_a_job_of_a_lost_node_goes_on(cluster: Cluster) -> None:
    job = cluster.submit(*ENDLESS, "run.name=lost", "--nodes=2", "--processes=1", "--cpus=1")
    job.until(lambda: list((cluster.runs / "lost" / "checkpoints").glob("[!.]*")))
    try:
        slurm("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=lost")
        for worker in job.workers("lost"):
            if worker.environ()["SLURMD_NODENAME"] == "n2":
                for process in (worker.parent(), worker):
                    assert process is not None
                    process.kill()
        job.until(lambda: job.requeued())
    finally:
        # Slurm refuses this if the node has come back by itself.
        subprocess.run(["scontrol", "update", "NodeName=n2", "State=RESUME"], check=False)
    until(nodes_are_idle, 60)
    job.release()
    job.until(lambda: re.search(r"resuming at step [1-9]", job.log()))


def test_a_full_local_disk_means_a_warning_and_the_shared_copy(cluster: Cluster) -> None:
    disk = cluster.folder / "full"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (disk / "other").write_bytes(bytes(1 << 19))
        cluster.write_site(TMPDIR=disk)
        job = cluster.submit(*TRAIN, "train.epochs=1", "run.name=full", "--processes=2", "--cpus=2")
        assert job.until_ended() == "COMPLETED", job.log()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    shared = Path("scratch", "neuscale", "data", "packed", "tiny")
    assert f"warning: not staged, reading {cluster.folder / shared} instead" in job.log()
