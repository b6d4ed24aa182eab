"""Errors that the user can fix, and the exit codes of the commands."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RESUME = 75  # stopped early with a checkpoint: the same command with --resume resumes the run


class UserError(Exception):
    """An error that the user can fix; shown as one message, without a traceback.

    `problem` says what is wrong and where; `fix` says what to do about it.
    """

    exit_code = EXIT_FAILED

    def __init__(self, problem: str, fix: str = "") -> None:
        super().__init__(f"{problem}\n{fix}" if fix else problem)
        self.problem = problem
        self.fix = fix


class UsageError(UserError):
    """A command or call asks for something that does not exist or is not possible."""

    exit_code = EXIT_USAGE


class WorkerError(UserError):
    """The first error among several worker processes, with its exit code."""

    def __init__(self, problem: str, fix: str, exit_code: int) -> None:
        super().__init__(problem, fix)
        self.exit_code = exit_code


class DataError(UserError):
    """A source, an archive or a packed data set that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or belongs to another model."""


def read_error(error: OSError, path: object) -> UserError:
    """UserError for an OSError while reading `path`: the file is unreadable, not necessarily damaged."""
    import errno

    fixes = {
        errno.EACCES: "Ask its owner for permission to read it.",
        errno.EPERM: "Ask its owner for permission to read it.",
        errno.ESTALE: "The file server has changed it meanwhile: run the command again.",
        errno.ENOENT: "It was removed meanwhile: run the command again.",
        errno.EIO: "The disk or the connection to it fails: see the system's log.",
    }
    return UserError(
        f"{path}: cannot be read ({error.strerror or error}).", fixes.get(error.errno or 0, "Check the disk.")
    )


def is_refused(error: OSError) -> bool:
    """True if the system could not provide a file that may still be intact."""
    import errno

    return error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE)


def disk_error(error: OSError, path: object) -> UserError:
    """UserError for an OSError raised while writing `path` or below it."""
    import errno

    reasons = {
        errno.ENOSPC: ("the disk is full", "free some space"),
        errno.EDQUOT: ("your quota on this disk is used up", "free some space"),
        errno.EROFS: ("the file system is read-only", "choose a folder that can be written"),
        errno.EACCES: ("no permission to write there", "choose a folder that you may write to"),
        errno.EPERM: ("no permission to write there", "choose a folder that you may write to"),
        errno.ENOTDIR: ("a part of this path is a file", "choose another folder"),
    }
    what, fix = reasons.get(error.errno or 0, (error.strerror or str(error), "check the disk"))
    return UserError(
        f"{path}: {what}.",
        f"To continue, {fix}: $NEUSCALE_DATA moves the data, $NEUSCALE_RUNS the runs.",
    )
