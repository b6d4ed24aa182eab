"""The image's cache folder belongs to the user alone, because its content is executed and unpickled."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from containers.conftest import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "image" / "environment.sh"
if not SCRIPT.is_file():
    pytest.skip("the image's scripts are not in this checkout", allow_module_level=True)

Sourced = Callable[..., tuple[Path, str]]


@pytest.fixture
def sourced(tmp_path: Path) -> Sourced:
    """A function that sources the script with `sh` and returns the chosen folder and the warnings."""
    temporary = tmp_path / "tmp"
    temporary.mkdir(mode=0o700)

    def source(**environment: str) -> tuple[Path, str]:
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(temporary), **environment}
        done = subprocess.run(
            ["sh", "-euc", f'. {SCRIPT}; printf "%s\\n" "$NEUSCALE_CACHE" "$TORCHINDUCTOR_CACHE_DIR"'],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        folder, inductor = done.stdout.splitlines()
        assert inductor == f"{folder}/inductor"
        return Path(folder), done.stderr

    return source


def usual(tmp_path: Path) -> Path:
    return tmp_path / "tmp" / f"neuscale-cache-{os.getuid()}"


def assert_own(folder: Path) -> None:
    status = folder.lstat()
    assert stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == os.getuid()


def test_a_new_folder_is_closed_to_others_and_kept(sourced: Sourced, tmp_path: Path) -> None:
    folder, said = sourced()
    assert folder == usual(tmp_path) and said == ""
    assert_own(folder)
    (folder / "kernel").touch()
    assert sourced() == (folder, ""), "the next command finds what was compiled"
    assert (folder / "kernel").exists()


def test_a_readable_folder_of_this_user_is_closed(sourced: Sourced, tmp_path: Path) -> None:
    usual(tmp_path).mkdir()
    usual(tmp_path).chmod(0o755)
    folder, said = sourced()
    assert folder == usual(tmp_path) and said == ""
    assert_own(folder)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702, 0o720])
def test_a_folder_that_others_may_write_to_is_not_used(sourced: Sourced, tmp_path: Path, mode: int) -> None:
    usual(tmp_path).mkdir()
    usual(tmp_path).chmod(mode)
    folder, said = sourced()
    assert folder != usual(tmp_path) and folder.parent == tmp_path / "tmp"
    assert_own(folder)
    assert said.startswith(f"warning: {usual(tmp_path)} is a link, or others own it") and str(folder) in said
    assert stat.S_IMODE(usual(tmp_path).stat().st_mode) == mode, "what others have there is theirs"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_not_followed(sourced: Sourced, tmp_path: Path, dangling: bool) -> None:
    target = tmp_path / "of-another"
    if not dangling:
        target.mkdir(mode=0o700)
    usual(tmp_path).symlink_to(target)
    folder, said = sourced()
    assert folder != usual(tmp_path) and "is a link" in said
    assert_own(folder)
    assert target.exists() is not dangling


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("named", [False, True])
def test_a_folder_of_another_user_is_not_used(sourced: Sourced, tmp_path: Path, named: bool) -> None:
    foreign = tmp_path / "tmp" / "chosen" if named else usual(tmp_path)
    foreign.mkdir(mode=0o700)
    os.chown(foreign, 54321, 54321)
    folder, said = sourced(**({"NEUSCALE_CACHE": str(foreign)} if named else {}))
    assert folder != foreign and str(foreign) in said
    assert_own(folder)


def test_without_any_folder_none_is_taken(sourced: Sourced, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder, said = sourced(TMPDIR=str(tmp_path / "file"))
    assert folder == Path("/dev/null/neuscale-cache")
    assert "cannot be written to; set NEUSCALE_CACHE or TMPDIR" in said
