"""Data folders shared by a group: unreadable data is not reported as damaged and never replaced."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .trees import as_folder, ready, split_files

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as two users")

ONE, TWO, GROUP = 54321, 54322, 54300

# The commands run as root first, to import everything: Python itself may be readable by root only.
ACT = """
import contextlib, os, sys
from neuscale.cli import run
user, shared, own, photos = int(sys.argv[1]), *sys.argv[2:5]
os.environ["NEUSCALE_DATA"] = own
with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
    run(["data", "prepare", "image_folder", "--source", photos, "--save-as", "x"])
    for command in ("info", "verify"):
        run(["data", command, "x"])
    run(["data", "info", "nothing"])
os.environ["NEUSCALE_DATA"] = shared
os.setgroups([GROUP]); os.setgid(GROUP); os.setuid(user); os.umask(0o002)
sys.exit(run(sys.argv[5:]))
""".replace("GROUP", str(GROUP))

As = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Shared data folder as administrators set it up: writable by the group, which also owns new files."""
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    as_folder(split_files(["cat", "dog"]), tmp_path / "photos")
    return folder


@pytest.fixture
def act(shared: Path, tmp_path: Path) -> As:
    """Function that runs `neuscale` as a user of the group."""

    def run(user: int, *words: str) -> "subprocess.CompletedProcess[str]":
        given = [str(user), str(shared), str(tmp_path / f"own{user}"), str(tmp_path / "photos")]
        command = [sys.executable, "-c", ACT, *given, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def test_two_users_of_a_group_prepare_into_one_folder(act: As, shared: Path, tmp_path: Path) -> None:
    """The second user can hold the lock file that the first one created."""
    words = ["data", "prepare", "image_folder", "--source", str(tmp_path / "photos"), "--save-as", "x"]
    assert act(ONE, *words).returncode == 0
    again = act(TWO, *words, "--force")
    assert again.returncode == 0, again.stderr
    assert (shared / "packed" / "x").stat().st_uid == TWO
    for lock in shared.rglob("*.lock"):
        assert stat.S_IMODE(lock.stat().st_mode) & 0o020


@pytest.mark.parametrize("what", ["meta.json", "train_images.npy", "folder"])
def test_what_its_owner_alone_may_read_is_not_damaged(
    act: As, shared: Path, tmp_path: Path, what: str
) -> None:
    words = ["data", "prepare", "image_folder", "--source", str(tmp_path / "photos"), "--save-as", "x"]
    assert act(ONE, *words).returncode == 0
    folder = shared / "packed" / "x"
    closed = folder if what == "folder" else folder / what
    closed.chmod(0o700 if what == "folder" else 0o600)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    for command in (words, ["data", "info", "x"], ["data", "verify", "x"]):
        said = act(TWO, *command)
        assert said.returncode == 1
        assert "cannot be read (Permission denied)" in said.stderr, said.stderr
        assert "Ask its owner" in said.stderr
        assert "damaged" not in said.stderr and "anew" not in said.stderr and "Traceback" not in said.stderr
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before


def test_a_source_that_may_not_be_read_is_no_empty_one(act: As, shared: Path, tmp_path: Path) -> None:
    closed = tmp_path / "photos" / "train" / "cat"
    os.chown(closed, ONE, GROUP)
    closed.chmod(0o700)
    words = ["data", "prepare", "image_folder", "--source", str(tmp_path / "photos"), "--save-as", "x"]
    said = act(TWO, *words)
    assert said.returncode == 1 and f"{closed}: cannot be read (Permission denied)" in said.stderr
    assert not (shared / "packed" / "x").exists()


def test_a_folder_that_may_not_be_written_to_is_read_without_a_word(
    act: As, shared: Path, tmp_path: Path
) -> None:
    words = ["data", "prepare", "image_folder", "--source", str(tmp_path / "photos"), "--save-as", "x"]
    assert act(ONE, *words).returncode == 0
    for path in (shared, shared / "packed"):
        path.chmod(0o2755)
    said = act(TWO, *words)
    assert said.returncode == 0, said.stderr
    assert "was prepared on" in said.stderr
    assert ready(shared, tmp_path / "photos", "x").verify() == []
