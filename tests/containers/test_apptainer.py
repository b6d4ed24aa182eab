"""The Apptainer image runs like the Docker image and contains the same environment."""

import json
import os
from pathlib import Path

import pytest

from containers.conftest import SHORT, Command, doctor, run

pytestmark = pytest.mark.containers


def test_trains_into_the_current_folder(apptainer: Command, tmp_path: Path) -> None:
    """`apptainer run neuscale.sif train` needs no home and writes data and runs to the current folder."""
    said = apptainer(*SHORT, "run.name=first")
    assert said.returncode == 0, said.stderr
    manifest = json.loads((tmp_path / "runs" / "first" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert (tmp_path / "data" / "packed" / "fashion_mnist").is_dir()


def test_both_images_are_the_same_environment(apptainer: Command, docker: Command) -> None:
    """Packages, Python and native ops are the same, so results measured in one image hold in the other."""
    here, there = doctor(docker), doctor(apptainer)
    assert here["packages"] == there["packages"]
    assert here["python"] == there["python"]
    assert here["native_ops"] == there["native_ops"]
    assert here["native_ops"]["cuda"]["sha256"]
    assert here["image"]["lock_sha256"] == there["image"]["lock_sha256"]


def test_the_hosts_folders_count_and_its_python_does_not(sif: Path, tmp_path: Path) -> None:
    """Apptainer passes the host's variables on, and those of the host's Python would break the image's."""
    for name in ("tmp", "torch", "modules"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "modules" / "torch.py").write_text("raise SystemExit('the host')")
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "TORCH_HOME": str(tmp_path / "torch")}
    environment |= {"PYTHONPATH": str(tmp_path / "modules"), "PYTHONHOME": "/nowhere"}
    code = "import os, torch; print(*map(os.environ.get, ('NEUSCALE_CACHE', 'TORCH_HOME', 'PYTHONPATH')))"
    command = ["apptainer", "exec", "--no-home", "--bind", str(tmp_path), str(sif), "python", "-c", code]
    said = run(*command, cwd=tmp_path, env=environment)
    assert said.returncode == 0, said.stderr
    cache, torch_home, path = said.stdout.split()
    assert cache.startswith(f"{tmp_path}/tmp/neuscale-cache-")
    assert (torch_home, path) == (f"{tmp_path}/torch", "None")
    environment |= {"NEUSCALE_CACHE": str(tmp_path / "own"), "NEUSCALE_PYTHONPATH": str(tmp_path / "tmp")}
    said = run(*command, cwd=tmp_path, env=environment)
    assert said.stdout.split()[0] == f"{tmp_path}/own" and said.stdout.split()[2] == f"{tmp_path}/tmp"
    said = run(*command[:-3], "neuscale", "--version", cwd=tmp_path, env=environment)
    assert said.returncode == 0, said.stderr
