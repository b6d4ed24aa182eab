"""`docker compose up` prepares the data, trains and serves TensorBoard; a stopped training resumes."""

import json
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from containers.conftest import CHECKOUT, run

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

PORT = 6123
FILES = ("--file", "docker-compose.yml", "--file", "docker-compose.cpu.yml")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def compose(image: str, tmp_path: Path, runs: Path) -> Iterator[Callable[..., str]]:
    """A function that runs docker compose in its own project, removed with its volumes afterwards."""
    if run("docker", "compose", "version").returncode != 0:
        pytest.skip("docker has no compose")
    settings = {
        "NEUSCALE_IMAGE": image,
        "NEUSCALE_UID": str(os.getuid() or 12345),
        "NEUSCALE_GID": str(os.getgid() or 12345),
        "NEUSCALE_DATA_VOLUME": "data",
        "NEUSCALE_RUNS_VOLUME": str(runs),
        "TENSORBOARD_PORT": str(PORT),
        "RUN_NAME": "composed",
        "TRAIN_ARGS": "train.epochs=1 train.log_every_steps=1",
    }
    if os.getuid() == 0:
        os.chown(runs, 12345, 12345)
    empty = tmp_path / "env"
    empty.write_text("")
    project = f"neuscale-test-{os.getpid()}"
    start = ("docker", "compose", "--project-name", project, "--env-file", str(empty), *FILES)

    def command(*words: str) -> str:
        done = run(*start, *words, cwd=CHECKOUT, env=os.environ | settings)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield command
    command("down", "--volumes", "--timeout", "5")


def until(holds: Callable[[], Any], seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


def scalars(tag: str) -> list[list[float]]:
    """Scalars of the run from TensorBoard's HTTP interface: [wall time, step, value]."""
    url = f"http://127.0.0.1:{PORT}/data/plugin/scalars/scalars?run=composed&tag={tag}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            found: list[list[float]] = json.load(answer)
            return found
    except (OSError, ValueError):
        return []


def test_stopped_in_the_middle_it_goes_on_where_it_was(compose: Callable[..., str], runs: Path) -> None:
    """Training starts on complete data and resumes after a stop without losing or repeating a step."""
    metrics, manifest = runs / "composed" / "metrics.jsonl", runs / "composed" / "manifest.json"
    compose("up", "--detach", "--no-build")
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 20)
    until(lambda: scalars("train/loss"))
    compose("stop", "train")
    stopped = steps(metrics)
    assert json.loads(manifest.read_text())["status"] != "finished"
    compose("up", "--detach", "--no-build")
    until(lambda: json.loads(manifest.read_text())["status"] == "finished")
    seen = steps(metrics)
    assert seen[: len(stopped)] == stopped
    assert seen == list(range(1, len(seen) + 1))
    shown = until(lambda: [p for p in scalars("train/loss") if p[1] == seen[-1]])
    assert shown[0][2] > 0
    until(lambda: "(healthy)" in compose("ps", "tensorboard"))
    owners = {path.stat().st_uid for path in runs.rglob("*")}
    assert owners == {os.getuid() or 12345}


def steps(metrics: Path) -> list[int]:
    """Training steps in the run's metrics, in order."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row["step"] for row in rows if row.get("split") == "train"]


def test_both_files_are_understood(compose: Callable[..., str]) -> None:
    found = json.loads(compose("--profile", "*", "config", "--format", "json"))
    assert set(found["services"]) == {"prepare", "train", "tensorboard", "eval", "shell"}
    assert "deploy" not in found["services"]["train"] or not found["services"]["train"]["deploy"].get(
        "resources"
    )
    assert not found["services"]["train"]["environment"]["NEUSCALE_CONFIG_DIR"], "there is no project"
    (port,) = found["services"]["tensorboard"]["ports"]
    assert port["host_ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("NEUSCALE_RUNS_VOLUME=~/in home", "home/in home"),
        ('NEUSCALE_RUNS_VOLUME="${HOME}/two words"  # where', "home/two words"),
        ("NEUSCALE_RUNS_VOLUME='./$plain'\r", "checkout/$plain"),
        ("NEUSCALE_RUNS_VOLUME=./first\nNEUSCALE_RUNS_VOLUME=./second", "checkout/second"),
    ],
)
def test_make_up_makes_the_folder_that_compose_means(
    line: str, folder: str, image: str, tmp_path: Path
) -> None:
    """The path in .env may be quoted or contain ~ and variables; a folder named ~ is never created."""
    del image
    if run("docker", "compose", "version").returncode != 0:
        pytest.skip("docker has no compose")
    top = tmp_path / "checkout"
    (top / "scripts").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    for name in (
        "docker-compose.yml",
        "docker-compose.cpu.yml",
        "scripts/compose.sh",
        "scripts/container_user.sh",
    ):
        shutil.copy(CHECKOUT / name, top / name)
    (top / ".env").write_text(f"NEUSCALE_DATA_VOLUME=data\n{line}\n", newline="")
    script = ["bash", str(top / "scripts" / "compose.sh"), "config", "--quiet"]
    said = run(*script, cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path / "home")})
    assert said.returncode == 0, said.stderr
    assert (tmp_path / folder).is_dir()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("~")]
