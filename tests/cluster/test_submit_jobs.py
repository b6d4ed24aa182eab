"""`neuscale submit` on a real cluster: arrays, the record of submitted jobs, and refused requests."""

import json

import pytest

from cluster.conftest import TRAIN, Cluster, slurm
from neuscale.analysis.listing import run_rows
from neuscale.slurm.jobs import submitted_jobs, with_jobs

pytestmark = pytest.mark.cluster


def test_a_sweep_is_an_array_with_a_folder_for_each_run(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TRAIN, "train.epochs=2", "run.name=sweep", "optim.lr=1e-3,3e-4", "run.seed=0,1"]
    job = cluster.submit(*words, "--processes=1", "--cpus=1")
    monkeypatch.setenv("NEUSCALE_RUNS", str(cluster.runs))
    assert {each.state for each in submitted_jobs()} <= {"pending", "running"}
    rows = {row.name: row for row in with_jobs(run_rows())}  # most of them have no folder yet
    assert {row.state for row in rows.values()} <= {"pending", "running", "empty"}
    assert rows["sweep-lr0.0003-seed1"].note == f"job {job.number}_3"
    assert job.until_ended(120) == "COMPLETED", job.log()
    names = [f"sweep-lr{lr}-seed{seed}" for lr in ("0.001", "0.0003") for seed in (0, 1)]
    assert sorted(path.name for path in cluster.runs.glob("sweep*")) == sorted(names)
    for name in names:
        assert json.loads((cluster.runs / name / "manifest.json").read_text())["status"] == "finished"
    found = [each for each in submitted_jobs() if each.job == job.number]
    assert [(each.index, each.run, each.state) for each in found] == [
        (index, name, "finished") for index, name in enumerate(names)
    ]


def test_states_of_jobs(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEUSCALE_RUNS", str(cluster.runs))
    job = cluster.submit(*TRAIN, "train.epochs=100000", "run.name=states", "--processes=1", "--cpus=1")

    def state() -> str:
        return next(each.state for each in submitted_jobs() if each.job == job.number)

    job.until_steps("states", 5)
    assert state() == "running"
    job.ask_to_save()
    job.until(job.requeued)
    assert state() == "requeued"
    assert {row.name: row.state for row in with_jobs(run_rows())}["states"] == "requeued"
    slurm("scancel", job.number)
    assert state() == "cancelled"
    monkeypatch.setenv("PATH", "/nonexistent")  # no Slurm commands, as in a container
    assert state() == "unknown"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--partition=gpv"], "partition gpv: this cluster has none of this name. Did you mean 'gpu'?"),
        (["--nodes=3"], "it has 2 nodes, and 3 are asked for"),
        (["--time=9h"], "its jobs may take 1 h, and 9 h are asked for"),
        (["--cpus=64"], "its nodes have 2 cores, and 64 are asked for"),
        (["--gpus=1", "--gpu-type=nope", "--cpus=1"], "error: sbatch: "),
    ],
)
def test_what_the_cluster_cannot_do_is_said_and_not_submitted(
    cluster: Cluster, options: list[str], says: str
) -> None:
    before = slurm("squeue", "--noheader", "--format=%i")
    said = cluster.neuscale(
        "submit", *TRAIN, "train.epochs=1", "--time=50m", "--site", str(cluster.site), *options
    )
    assert said.returncode in (1, 2)
    assert says in " ".join(said.stderr.split())
    assert slurm("squeue", "--noheader", "--format=%i") == before
    assert not list((cluster.runs / "jobs").glob("*.partial*"))
