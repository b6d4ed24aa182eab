"""Where the launchers of several nodes meet: all have to come to the same answer from what Slurm says."""

import pytest

from neuscale.cluster.nodes import Nodes, first_host, job_port, srun_nodes
from neuscale.errors import UsageError

STEP = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "atl1-1-[03-04]",
    "SLURM_NODEID": "1",
    "SLURMD_NODENAME": "atl1-1-04",
}


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of the second of two tasks, without Slurm's commands, as in a container."""
    monkeypatch.setenv("PATH", "/nonexistent")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu-[003-007,9],login1", "gpu-003"),
        ("login1,gpu-[003-007]", "login1"),
        ("rack[2,4]-node[10-12]", "rack2-node10"),
        ("atl1-1-03-004-[11,13].pace", "atl1-1-03-004-11.pace"),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_the_nodes_of_a_step(step: pytest.MonkeyPatch) -> None:
    assert srun_nodes() == Nodes(2, 1, "atl1-1-04", "atl1-1-03", job_port(1234567))
    step.setenv("MASTER_ADDR", "10.0.0.3")
    step.setenv("MASTER_PORT", "23456")
    assert srun_nodes() == Nodes(2, 1, "atl1-1-04", "10.0.0.3", 23456)


def test_ports_are_below_those_that_systems_hand_out() -> None:
    ports = {job_port(job) for job in range(1, 100_000)}
    assert min(ports) >= 20_000
    assert max(ports) < 32_768


def test_one_task_is_this_machine_alone(step: pytest.MonkeyPatch) -> None:
    step.setenv("SLURM_STEP_NUM_NODES", "1")
    step.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert srun_nodes() == Nodes()


def test_several_tasks_on_a_node_are_refused(step: pytest.MonkeyPatch) -> None:
    """They would train as many runs as there are GPUs, each alone."""
    step.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(UsageError, match=r"8 tasks on 2 nodes(.|\n)*--ntasks-per-node 1"):
        srun_nodes()
