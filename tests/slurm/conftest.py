"""`neuscale submit` without Slurm, and a fake `neuscale` program to start instead of trainings."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neuscale.cli import run
from stand_in import stand_in as stand_in

SHELLCHECK = Path(sys.prefix, "bin", "shellcheck")
WORDS = ["experiment=quickstart", "model.weights=it's mine"]

Submit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Submit:
    """A function that runs `neuscale submit` without Slurm's commands, in an empty folder."""
    for name in [name for name in os.environ if name.startswith(("NEUSCALE_", "SBATCH_", "SLURM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "env"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        code = run(["submit", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def check(script: Path) -> None:
    """Assert that bash and, if installed, shellcheck find nothing wrong."""
    subprocess.run(["/bin/bash", "-n", script], check=True)
    if SHELLCHECK.exists():
        done = subprocess.run([SHELLCHECK, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
