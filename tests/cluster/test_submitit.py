"""A job started by examples/submitit_sweep.py is requeued after a preemption and trains to its end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.conftest import TRAIN, BatchJob, Cluster, slurm

pytestmark = pytest.mark.cluster
EXAMPLE = Path(__file__).parents[2] / "examples" / "submitit_sweep.py"


def test_the_example_goes_on_after_a_preemption(cluster: Cluster) -> None:
    pytest.importorskip("submitit")
    words = [*TRAIN, "train.epochs=1000", "train.max_steps=600"]
    scratch = cluster.scratch / "neuscale"
    options = [
        "--name=py",
        "--lr",
        "1e-3",
        "--minutes=30",
        "--cpus=1",
        "--folder",
        str(cluster.folder / "submitit"),
    ]
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), *options, "--", *words],
        env=os.environ
        | {
            "NEUSCALE_DATA": str(scratch / "data"),
            "NEUSCALE_RUNS": str(cluster.runs),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"job (\d+)", line)
        assert found, line
        number = slurm("squeue", "--noheader", "--format=%A", f"--jobs={found[1]}").strip()
        job = BatchJob(number, cluster.runs)
        cluster.jobs.append(job)
        job.until_steps("py-lr1e-3", 20)
        slurm("scancel", "--signal=USR2", number)
        job.until(job.requeued)
        job.release()
        file = cluster.runs / "py-lr1e-3" / "manifest.json"
        job.until(lambda: json.loads(file.read_text())["status"] == "finished", 90)
    finally:
        process.kill()
        process.wait()
    assert len(json.loads(file.read_text())["resumed"]) == 1
