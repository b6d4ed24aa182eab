"""Exit codes that scripts and schedulers rely on, and disk errors with messages that say what to do."""

import errno
import os

import pytest

from neuscale.errors import (
    EXIT_FAILED,
    EXIT_RESUME,
    EXIT_USAGE,
    CheckpointError,
    DataError,
    UsageError,
    UserError,
    WorkerError,
    disk_error,
)


def test_exit_codes_are_those_of_the_documentation() -> None:
    assert (EXIT_FAILED, EXIT_USAGE, EXIT_RESUME) == (1, 2, 75)
    codes = [error("x").exit_code for error in (UserError, UsageError, DataError, CheckpointError)]
    assert codes == [1, 2, 1, 1]
    assert WorkerError("x", "y", 9).exit_code == 9


def test_an_error_is_what_is_wrong_and_what_to_do() -> None:
    error = UserError("a disk is full", "free some")
    assert (error.problem, error.fix, str(error)) == (
        "a disk is full",
        "free some",
        "a disk is full\nfree some",
    )
    assert str(UserError("a disk is full")) == "a disk is full"


@pytest.mark.parametrize(
    ("number", "what", "fix"),
    [
        (errno.ENOSPC, "the disk is full", "free some space"),
        (errno.EDQUOT, "your quota on this disk is used up", "free some space"),
        (errno.EROFS, "the file system is read-only", "choose a folder that can be written"),
        (errno.EACCES, "no permission to write there", "choose a folder that you may write to"),
        (errno.EPERM, "no permission to write there", "choose a folder that you may write to"),
        (errno.ENOTDIR, "a part of this path is a file", "choose another folder"),
        (errno.EIO, os.strerror(errno.EIO), "check the disk"),
    ],
)
def test_an_error_of_the_disk_in_words(number: int, what: str, fix: str) -> None:
    error = disk_error(OSError(number, os.strerror(number)), "/big/runs")
    assert error.problem == f"/big/runs: {what}."
    assert error.fix.startswith(f"To continue, {fix}: $NEUSCALE_DATA")
    assert error.exit_code == 1
    assert disk_error(OSError("odd"), "x").problem == "x: odd."
