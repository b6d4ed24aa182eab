"""The code of a run can be restored from its revision and the patch of uncommitted changes."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from neuscale.runs import environment as code
from neuscale.runs.environment import describe_code, source_hash, uncommitted

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    """A function that runs git in a checkout with a package and a file beside it."""
    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    top = tmp_path / "checkout"
    (top / "package").mkdir(parents=True)

    def run(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        done = subprocess.run(["git", "-C", str(top), *who, *words], check=True, capture_output=True)
        return done.stdout.decode()

    (top / "package" / "model.py").write_text("depth = 2\n")
    (top / "package" / "data.bin").write_bytes(bytes(range(256)))
    (top / "notes.txt").write_text("beside the package\n")
    run("init")
    run("add", ".")
    run("commit", "-m", "one")
    return run


def test_the_difference_makes_the_same_code_from_the_commit(git: Git, tmp_path: Path) -> None:
    top, clone = tmp_path / "checkout", tmp_path / "clone"
    assert uncommitted(top / "package") == b""
    (top / "package" / "model.py").write_text("depth = 3\n")
    (top / "package" / "data.bin").write_bytes(bytes(range(255, -1, -1)))
    (top / "package" / "neu ü.py").write_text("a new file\n")
    (top / "package" / "staged.py").write_text("staged\n")
    git("add", "package/staged.py")
    (top / "notes.txt").write_text("none of the run's code\n")

    patch = uncommitted(top / "package")
    assert b"none of the run" not in patch
    subprocess.run(["git", "clone", "-q", str(top), str(clone)], check=True)
    subprocess.run(["git", "-C", str(clone), "apply", "--binary"], input=patch, check=True)
    assert source_hash(clone / "package") == source_hash(top / "package")


def test_a_byte_a_name_and_a_file_more_make_other_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    first = source_hash(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    assert source_hash(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    second = source_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    third = source_hash(tmp_path)
    (tmp_path / "empty.yaml").touch()
    assert len({first, second, third, source_hash(tmp_path)}) == 4


def test_without_git_the_files_are_known_all_the_same(
    git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "checkout" / "package"
    (package / "model.py").write_text("depth = 4\n")
    monkeypatch.setattr(code, "IMAGE_RECORD", tmp_path / "none.json")
    monkeypatch.setattr(code, "__file__", str(package / "runs" / "environment.py"))
    monkeypatch.setattr(code, "PACKAGE", package)
    described, patch = describe_code()
    assert described["changed"]
    assert described["diff"] == {"file": "code.diff", "sha256": hashlib.sha256(patch).hexdigest()}
    shutil.rmtree(tmp_path / "checkout" / ".git")
    alone, nothing = describe_code()
    assert nothing == b""
    assert alone == {
        "revision": None,
        "changed": None,
        "source_sha256": described["source_sha256"],
        "diff": None,
    }
