"""A job that loses its nodes is saved, requeued and resumed without loss and without anyone's help."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.conftest import ENDLESS, PROGRAM, TRAIN, BatchJob, Cluster, slurm
from end_to_end.test_kills import final, same

pytestmark = pytest.mark.cluster

STEPS = 400
RECIPE = [
    *TRAIN,
    "train.epochs=1000",
    f"train.max_steps={STEPS}",
    "train.ema_decay=0.9",
    "augment.mixup_alpha=0.4",
]


@dataclass
class Resumed:
    """A job of two nodes that was asked to save, requeued itself and finished."""

    job: BatchJob
    cluster: Cluster


@pytest.fixture(scope="module")
def resumed(module_cluster: Cluster) -> Iterator[Resumed]:
    job = module_cluster.submit(*RECIPE, "run.name=cut", "--nodes=2", "--processes=1", "--cpus=1")
    job.until_steps("cut", 30)
    job.ask_to_save()
    job.until(job.requeued)
    job.release()
    assert job.until_ended() == "COMPLETED", job.log()
    yield Resumed(job, module_cluster)
    if job in module_cluster.jobs:
        module_cluster.jobs.remove(job)


def test_the_result_is_bitwise_that_of_a_run_never_interrupted(resumed: Resumed, tmp_path: Path) -> None:
    scratch = resumed.cluster.scratch / "neuscale"
    subprocess.run(
        [PROGRAM, "train", *RECIPE, "run.name=whole", "--processes", "2"],
        env=os.environ
        | {"NEUSCALE_DATA": str(scratch / "data"), "NEUSCALE_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    manifest = json.loads((resumed.cluster.runs / "cut" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["machine"]["processes"] == 2
    assert len(manifest["resumed"]) == 1
    assert 30 <= manifest["resumed"][0]["step"] < STEPS
    whole, cut = final(tmp_path / "whole"), final(resumed.cluster.runs / "cut")
    for name, value in whole.items():
        assert same(value, cut[name]), name


def test_the_log_goes_on_and_says_where(resumed: Resumed) -> None:
    log = resumed.job.log()
    assert log.count("2 processes on CPU, 1 thread") == 2
    assert "stopped by SIGUSR2 after step" in log
    assert "back in the queue" in log
    assert "resuming at step" in log
    assert not re.search(r"^error: |Traceback", log, flags=re.MULTILINE)


def test_the_time_limit_and_a_cancellation(cluster: Cluster) -> None:
    """Slurm's signal before the time limit saves and requeues; a cancelled job is saved and not requeued."""
    job = cluster.submit(
        *ENDLESS, "run.name=limit", "--nodes=2", "--processes=1", "--cpus=1", "--time=1m", "--lead=25s"
    )
    job.until(job.requeued, 90)
    assert "stopped by SIGUSR2 after step" in job.log()
    job.release()
    job.until(lambda: "resuming at step" in job.log())
    slurm("scancel", job.number)
    assert job.until_ended() == "CANCELLED"
    assert job.log().count("everything is saved") == 2
    assert job.log().count("back in the queue") == 1
