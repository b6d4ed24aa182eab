"""Fixtures that start the images as a user does; tests skip, with the reason, without engine or image."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[2]
IMAGE = os.environ.get("NEUSCALE_TEST_IMAGE", "neuscale:0.1.0")
SIF = Path(os.environ.get("NEUSCALE_TEST_SIF") or "neuscale.sif")
SIF = SIF if SIF.is_absolute() else CHECKOUT / SIF

# A training of a few seconds on two cores, with the data in the image.
SHORT = ("train", "experiment=quickstart", "train.max_steps=2", "run.device=cpu")

Command = Callable[..., subprocess.CompletedProcess[str]]


def run(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its exit code and output."""
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=280, **options)


@pytest.fixture(scope="session")
def image() -> str:
    """The name of the Docker image."""
    if shutil.which("docker") is None:
        pytest.skip("no docker on this machine")
    if run("docker", "version", "--format", "{{.Server.Version}}").returncode != 0:
        pytest.skip("no Docker engine answers (DOCKER_HOST?)")
    if run("docker", "image", "inspect", IMAGE).returncode != 0:
        pytest.skip(f"there is no image {IMAGE} (make image)")
    return IMAGE


@pytest.fixture
def docker(image: str) -> Command:
    """A function that runs a command in the image, as a user ID without a name."""

    def start(*words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return run("docker", "run", "--rm", "--user", "12345:12345", *options, image, *words)

    return start


@pytest.fixture(scope="session")
def sif() -> Path:
    """The Apptainer image."""
    if shutil.which("apptainer") is None:
        pytest.skip("no apptainer on this machine")
    if not SIF.is_file():
        pytest.skip(f"there is no {SIF.name} (make sif)")
    return SIF


@pytest.fixture
def apptainer(sif: Path, tmp_path: Path) -> Command:
    """A function that runs the image in an empty folder, without the host's home and environment."""

    def start(*words: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return run("apptainer", "run", "--cleanenv", "--no-home", *options, str(sif), *words, cwd=tmp_path)

    return start


def doctor(start: Command) -> dict[str, Any]:
    """Parsed output of `neuscale doctor --json`, run by `start`."""
    said = start("doctor", "--json")
    assert said.stdout, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found
