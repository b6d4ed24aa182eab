"""The Apptainer image runs like the Docker image, and is the same environment."""

import json
from pathlib import Path

import pytest

from containers.conftest import SHORT, Command, doctor

pytestmark = pytest.mark.containers


def test_trains_into_the_current_folder(apptainer: Command, tmp_path: Path) -> None:
    """apptainer run neuscale.sif train: nothing in the image or the home is written."""
    said = apptainer(*SHORT, "run.name=first")
    assert said.returncode == 0, said.stderr
    manifest = json.loads((tmp_path / "runs" / "first" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert (tmp_path / "data" / "packed" / "fashion_mnist").is_dir()


def test_both_images_are_the_same_environment(apptainer: Command, docker: Command) -> None:
    """What was measured in one holds in the other: the same packages, Python and machine code."""
    here, there = doctor(docker), doctor(apptainer)
    assert here["packages"] == there["packages"]
    assert here["python"] == there["python"]
    assert here["native_ops"] == there["native_ops"]
    assert here["native_ops"]["cuda"]["sha256"]
    assert here["image"]["lock_sha256"] == there["image"]["lock_sha256"]
