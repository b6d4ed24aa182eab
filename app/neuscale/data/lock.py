"""One process at a time, between processes of one machine or of a shared file system."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from neuscale.errors import UserError, disk_error
from neuscale.files import make_folder
from neuscale.progress import Progress


@contextmanager
def exclusive(path: Path, doing: str, progress: Progress) -> Iterator[bool]:
    """Hold the lock file at `path`; yields whether another process held it first.

    `doing` tells the user what is waited for. The system frees the lock of a process that is
    killed; the empty file stays, since removing it would let two processes in.
    """
    waited = False
    try:
        make_folder(path.parent)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            progress.message(f"another process is {doing}: waiting for it")
            lock.acquire()
    except OSError as error:
        raise disk_error(error, path.parent) from error
    except NotImplementedError:
        raise UserError(
            f"{path.parent}: this file system has no file locks.",
            "Set $NEUSCALE_DATA to a folder on another one.",
        ) from None
    try:
        yield waited
    finally:
        lock.release()
