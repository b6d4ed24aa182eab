"""Real processes: two see what one sees, and a run that is killed again and again ends as if it never was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY_RECIPE
from neuscale.data.prepare import prepare
from neuscale.training.meters import TIMINGS

RECIPE = [*TINY_RECIPE, "optim=adamw", "train.log_every_steps=1", "tracking.tensorboard=false"]


@pytest.fixture(scope="module")
def environment(
    build_image_tree: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The environment of the commands, with a data folder in which 'tiny' is prepared."""
    folder = tmp_path_factory.mktemp("end_to_end")
    tree = build_image_tree(folder / "tree", train=40, val=9)
    prepare("image_folder", root=folder / "data", source=tree, save_as="tiny")
    return os.environ | {
        "NEUSCALE_DATA": str(folder / "data"),
        "NEUSCALE_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
    }


def train_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "neuscale", "train", *RECIPE, *words]


def curves(environment: dict[str, str], name: str) -> list[dict[str, Any]]:
    path = Path(environment["NEUSCALE_RUNS"]) / name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for name in TIMINGS:
            line.pop(name, None)
    return lines


def test_two_processes_train_as_one_does(environment: dict[str, str]) -> None:
    """The same samples, augmentations and learning rates; the losses agree to float tolerance."""
    words = ["train.epochs=2", "train.micro_batch=3", "model.drop_path_rate=0.5"]
    for name, count in (("one", "1"), ("two", "2")):
        subprocess.run(
            train_command(f"run.name={name}", *words, "--processes", count), env=environment, check=True
        )
    one, two = curves(environment, "one"), curves(environment, "two")
    assert len(one) == 22
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert b[key] == pytest.approx(value, rel=2e-4) if isinstance(value, float) else b[key] == value
    manifest = json.loads((Path(environment["NEUSCALE_RUNS"]) / "two" / "manifest.json").read_text())
    assert manifest["machine"]["processes"] == 2
