"""Rendezvous of launchers on several nodes: all derive the same address and port from Slurm's variables."""

from pathlib import Path

import pytest

from neuscale.distributed.nodes import Nodes, first_host, in_batch_job, in_step, job_port, srun_nodes
from neuscale.errors import UsageError
from stand_in import calls, make_programs

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
    """Otherwise each task, one for each GPU, would train a run alone."""
    step.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(UsageError, match=r"8 tasks on 2 nodes(.|\n)*--ntasks-per-node 1"):
        srun_nodes()


def test_nodes_whose_numbers_slurm_does_not_say(step: pytest.MonkeyPatch) -> None:
    step.delenv("SLURM_NODEID")
    step.delenv("SLURMD_NODENAME")
    step.setattr("socket.gethostname", lambda: "host")
    assert srun_nodes() == Nodes(2, 0, "host", "atl1-1-03", 20_000 + 1234567 % 12_000)


def test_the_address_by_which_slurm_reaches_the_first_node(step: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other nodes may be unable to resolve the first node's name."""
    script = 'printf "NodeName=$3 Arch=x86_64\\n   NodeHostName=other NodeAddr=10.1.2.3 Version=24\\n"'
    programs = make_programs(tmp_path / "bin", step, scontrol=script)
    step.setenv("PATH", f"{programs}:/usr/bin:/bin")
    assert srun_nodes().address == "10.1.2.3"
    assert calls(programs, "scontrol") == ["show node atl1-1-03"]


@pytest.mark.parametrize(("job", "port"), [(1, 20_001), (12_000, 20_000), (1234567, 30_567)])
def test_the_port_of_a_job(job: int, port: int) -> None:
    assert job_port(job) == port


def test_only_srun_makes_a_step(step: pytest.MonkeyPatch) -> None:
    step.delenv("SLURM_STEP_ID", raising=False)
    assert not in_step()
    step.setenv("SLURM_STEP_ID", "0")
    assert in_step()


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("SLURM_JOB_ID", "7", True),
        ("PBS_JOBID", "7.server", True),
        ("LSB_JOBID", "7", True),
        ("SGE_TASK_ID", "1", True),
        ("SLURM_JOB_ID", "", False),
        ("JOB_ID", "7", False),
    ],
)
def test_a_batch_job_is_known_by_its_schedulers_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, found: bool
) -> None:
    for other in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "SGE_TASK_ID"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert in_batch_job() == found
