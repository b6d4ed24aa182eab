"""A user's project in the images: its model is imported, and the run records its code."""

import json
import os
from pathlib import Path

import pytest

from neuscale.project.folder import new_project
from project.foreign_models import BATCH_NORM

from .conftest import CHECKOUT, Command, run

pytestmark = pytest.mark.containers

WORDS = ("train", "experiment=first", "data.dataset.count=120", "train.max_steps=2", "run.device=cpu")


def kept(run_folder: Path) -> set[str]:
    manifest = json.loads((run_folder / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    return {file["file"] for file in manifest["own_code"]["files"]}


def test_docker_trains_a_model_that_is_mounted(docker: Command, tmp_path: Path) -> None:
    new_project(tmp_path / "bees")
    for name in ("runs", "data"):
        (tmp_path / name).mkdir(mode=0o777)
        (tmp_path / name).chmod(0o777)
    options = ("--volume", f"{tmp_path}/bees:/project:ro", "--env", "NEUSCALE_CONFIG_DIR=/project/conf")
    options += ("--volume", f"{tmp_path}/runs:/runs", "--volume", f"{tmp_path}/data:/data")
    said = docker(*WORDS, "run.name=a", options=options)
    assert said.returncode == 0, said.stderr
    assert kept(tmp_path / "runs" / "a") == {"nets.py", "shapes.py"}


def test_the_image_of_a_new_project_trains_another_model(image: str, docker: Command, tmp_path: Path) -> None:
    """The project's image is built on the NeuScale image, as by the project's Makefile."""
    new_project(tmp_path / "bees")
    (tmp_path / "bees" / "batchnet.py").write_text(BATCH_NORM)
    (tmp_path / "bees" / "conf" / "model" / "batch.yaml").write_text("_target_: batchnet.Net\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o777)
    built = run("docker", "build", "--quiet", "--build-arg", f"BASE={image}", str(tmp_path / "bees"))
    assert built.returncode == 0, built.stderr
    own = built.stdout.strip()
    try:
        options = ("run", "--rm", "--volume", f"{tmp_path}/runs:/runs", own)
        said = run("docker", *options, *WORDS, "model=batch", "run.name=a")
        assert said.returncode == 0, said.stderr
    finally:
        run("docker", "image", "rm", "--force", own)
    assert kept(tmp_path / "runs" / "a") == {"batchnet.py", "shapes.py"}


def test_apptainer_trains_a_model_of_the_current_folder(apptainer: Command, tmp_path: Path) -> None:
    new_project(tmp_path / "bees")
    for path in (tmp_path / "bees").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "bees").rmdir()
    said = apptainer(*WORDS, "run.name=a")
    assert said.returncode == 0, said.stderr
    assert kept(tmp_path / "runs" / "a") == {"nets.py", "shapes.py"}


def test_compose_mounts_a_project_that_is_named(image: str, tmp_path: Path) -> None:
    if run("docker", "compose", "version").returncode != 0:
        pytest.skip("docker has no compose")
    environment = {**os.environ, "NEUSCALE_IMAGE": image, "NEUSCALE_PROJECT": str(tmp_path)}
    words = ("docker", "compose", "--env-file", "/dev/null", "config", "--format", "json")
    said = run(*words, cwd=CHECKOUT, env=environment)
    assert said.returncode == 0, said.stderr
    train = json.loads(said.stdout)["services"]["train"]
    assert train["environment"]["NEUSCALE_CONFIG_DIR"] == "/project/conf"
    (mount,) = (each for each in train["volumes"] if each["target"] == "/project")
    assert mount["source"] == str(tmp_path) and mount["read_only"]
