"""Cores and nodes that processes see in a real Slurm allocation."""

import json
import subprocess
import sys

import pytest

from cluster.conftest import PROGRAM, Cluster

pytestmark = pytest.mark.cluster


def test_cores_are_those_of_the_step(two_nodes: None) -> None:
    """The step's cores count, even if the cluster does not bind tasks and all cores are visible."""
    code = "from neuscale.hardware import available_cores; print(available_cores())"
    for cpus in (1, 2):
        command = ["srun", "--ntasks=1", f"--cpus-per-task={cpus}", sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert int(done.stdout) == cpus


def test_doctor_looks_at_every_node(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUSCALE_DATA", str(cluster.scratch / "neuscale" / "data"))
    monkeypatch.setenv("NEUSCALE_RUNS", str(cluster.runs))
    monkeypatch.setenv("TMPDIR", str(cluster.folder))
    command = ["salloc", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=2"]
    done = subprocess.run(
        [*command, PROGRAM, "doctor", "--cluster", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["nodes"], found["processes"], found["problems"]) == (2, 2, [])
    assert found["n1"]["cores"] == found["n2"]["cores"] == 1
    assert "MB/s" in found["n1"]["data"] and str(cluster.folder) in found["n2"]["local"]
    assert "gloo all-reduce of 32 MiB over 2 processes" in found["network"]
    assert found["time_left"].startswith(("1:", "2:", "0:01", "0:02")), found["time_left"]


def test_several_tasks_on_a_node_are_refused_by_the_first(two_nodes: None, cluster: Cluster) -> None:
    done = subprocess.run(
        ["srun", "--nodes=1", "--ntasks=2", PROGRAM, "train", "experiment=quickstart"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "srun started 2 tasks on 1 node, and each would train a run of its own." in done.stderr


def test_a_shell_on_one_of_two_nodes_is_told_for_whom_it_waits(two_nodes: None, cluster: Cluster) -> None:
    """The situation after `srun --nodes 2 --pty bash`: the second node's shell has no terminal and exits."""
    script = f"[ $SLURM_NODEID = 0 ] || exit 0; timeout -s INT 25 {PROGRAM} train experiment=quickstart"
    words = ["run.device=cpu", "train.max_steps=1"]
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks=2", "--wait=60", "bash", "-c", " ".join([script, *words])],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "waiting for 1 of the 2 nodes" in done.stderr, done.stderr
    assert "srun --pty" in done.stderr
