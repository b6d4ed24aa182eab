"""Signals, data and run folders also work for a job in an Apptainer image."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cluster.conftest import TRAIN, Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture
def sif() -> Path:
    """The Apptainer image that NEUSCALE_TEST_SIF names."""
    if shutil.which("apptainer") is None:
        pytest.skip("no apptainer on this machine")
    named = os.environ.get("NEUSCALE_TEST_SIF")
    if not named:
        pytest.skip("NEUSCALE_TEST_SIF names no image (make sif)")
    assert Path(named).is_file(), named
    return Path(named).absolute()


def test_an_image_on_two_nodes_is_saved_requeued_and_goes_on(cluster: Cluster, sif: Path) -> None:
    cluster.write_site(NEUSCALE_SIF=sif)
    words = [*TRAIN, "train.epochs=1000", "train.max_steps=600", "run.name=image"]
    job = cluster.submit(*words, "--nodes=2", "--processes=1", "--cpus=1")
    job.until_steps("image", 20, 120)
    job.ask_to_save()
    job.until(job.requeued)
    job.release()
    assert job.until_ended(120) == "COMPLETED", job.log()
    manifest = json.loads((cluster.runs / "image" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["machine"]["processes"] == 2
    assert len(manifest["resumed"]) == 1
    assert manifest["image"] is not None
    assert "resuming at step" in job.log()
    for node in ("n1", "n2"):
        assert (cluster.folder / node / "neuscale" / "packed" / "tiny").is_dir()
