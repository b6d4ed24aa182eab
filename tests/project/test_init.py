"""`neuscale init` makes a project that trains and whose own tests pass without a network."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Said

Command = Callable[..., Said]


def test_its_tests_pass_and_its_recipe_trains(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_fresh: None
) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    monkeypatch.chdir(tmp_path)
    said = command("init", "bees")
    assert said.code == 0 and "bees/conf/model/mynet.yaml" in said.out and "bees/.gitignore" in said.out
    assert "docker build --tag bees" in (tmp_path / "bees" / "Makefile").read_text()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NEUSCALE_DATA": str(tmp_path / "data")}
    environment |= {"NEUSCALE_RUNS": str(tmp_path / "runs")}
    for target, expected in (("test", "Ran 2 tests"), ("train", "epoch 5: top-1")):
        words = ["make", target, f"PYTHON={sys.executable}"]
        done = subprocess.run(words, cwd=tmp_path / "bees", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert expected in done.stderr, done.stdout + done.stderr
    said = command("init", "bees")
    assert said.code == 2 and "is there already" in said.err


@pytest.mark.parametrize("name", ["Bees", "a b", "-x", "ä"])
def test_a_name_that_no_image_can_have_is_refused(
    name: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("init", "--", name)
    assert said.code == 2 and "cannot be the name of a project" in said.err
    assert not list(tmp_path.iterdir())
