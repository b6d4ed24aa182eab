"""Atomic, durable writes: a reader sees a complete file or folder or none, also after a power cut.

A file or folder is written under a temporary name, synced (fsync), and renamed into place. Locks keep
processes on one machine, or on a shared file system, from interfering with each other.
"""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from neuscale.errors import DataError, UserError, disk_error
from neuscale.progress import Progress

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # from Linux's fcntl.h and fs.h
# A new folder with more files than this is synced with one os.sync() instead of one fsync per file.
_SYNCED_ONE_BY_ONE = 64


def sync_folder(folder: Path) -> None:
    """Fsync `folder`, which makes the names in it durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Fsync the file at `path`, which makes its content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file at `path` by one with `content`, with an atomic rename."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; fsync it and rename it to `path` at the end."""
    part = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield part
        sync_file(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path, exist_ok: bool = True, mode: int = 0o777) -> None:
    """Create `folder`, with `mode` minus the umask, and its missing parents; make their names durable."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode, parents=True, exist_ok=exist_ok)
    for path in new:
        sync_folder(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder to write to; it replaces `folder` at the end.

    An existing folder of that name stays until then, and is kept if there is an error. Raises UserError if
    the disk cannot be written.
    """
    partial = partial_folder(folder)
    try:
        with writing(folder):
            make_folder(partial, exist_ok=False)
            yield partial
            _sync_tree(partial)
            move_into_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def partial_folder(folder: Path) -> Path:
    """Temporary name under which this process writes `folder`."""
    return folder.with_name(f".{folder.name}.partial-{os.getpid()}")


def move_into_place(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`; an older folder is exchanged atomically, if possible, and removed."""
    older = partial  # the older folder's name after an exchange
    if not folder.exists():
        partial.rename(folder)
    elif not _exchange(partial, folder):  # a system that cannot: for a moment there is neither
        older = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
        folder.rename(older)
        try:
            partial.rename(folder)
        except OSError:
            older.rename(folder)
            raise
    sync_folder(folder.parent)  # before the older one is removed: a power cut could restore its name
    shutil.rmtree(older, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary folders that killed processes left beside `folder`; call this only under its lock.

    If a process was killed between the two renames of `move_into_place`, the older folder gets its name
    back.
    """
    with writing(folder):
        if not folder.parent.is_dir():
            return
        for replaced in sorted(folder.parent.glob(f".{folder.name}.replaced-*")):
            if not folder.exists():
                replaced.rename(folder)
        kinds = ("partial", "replaced")
        leftovers = [path for kind in kinds for path in folder.parent.glob(f".{folder.name}.{kind}-*")]
        if leftovers:
            sync_folder(folder.parent)  # as in move_into_place
        for leftover in leftovers:
            shutil.rmtree(leftover)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Convert an OSError into the UserError for writing to `folder`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, folder) from error


def _lock_mode(path: Path) -> int:
    """Mode of a lock file: everyone who may write to its folder must be able to lock it."""
    try:
        return 0o644 | path.parent.stat().st_mode & 0o022
    except OSError:
        return 0o644


@contextmanager
def waiting_lock(path: Path, doing: str, progress: Progress) -> Iterator[bool]:
    """Hold the lock file at `path`, waiting while another process holds it; yield True after a wait.

    `doing` tells the user what the holder does. The system releases the lock of a killed process. The
    empty file stays, since removing it would let two processes hold the lock.
    """
    waited = False
    try:
        make_folder(path.parent)
        lock = FileLock(path, mode=_lock_mode(path))
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


@contextmanager
def folder_lock(folder: Path, doing: str, progress: Progress) -> Iterator[bool]:
    """Hold the lock for writing `folder` and remove leftovers of killed processes; see `waiting_lock`."""
    with waiting_lock(folder.with_name(f".{folder.name}.lock"), doing, progress) as waited:
        remove_leftovers(folder)
        yield waited


@contextmanager
def held_lock(path: Path, busy: UserError, timeout: float = 0.0) -> Iterator[None]:
    """Hold the lock file at `path`; raise `busy` if another process still holds it after `timeout` seconds.

    On a file system without locks, nothing is locked.
    """
    lock = FileLock(path, mode=_lock_mode(path))
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise busy from None
    except OSError as error:
        raise disk_error(error, path.parent) from error
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """True while another process holds the lock file at `path`."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # no permission, or a file system without locks
        return False
    lock.release()
    return False


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path`, or `path` itself, that exists."""
    there = path.absolute()
    while not os.path.exists(there):  # noqa: PTH110 - Path.exists raises for a parent that cannot be searched
        there = there.parent
    return there


def check_space(folder: Path, needed: int, what: str, fix: str, margin: int = 0) -> None:
    """Raise DataError if the disk of `folder` has less than `needed` + `margin` bytes free for `what`."""
    free = shutil.disk_usage(existing_parent(folder)).free
    if needed + margin > free:
        raise DataError(
            f"{folder}: {what} takes {(needed + margin) / 1e6:,.0f} MB{' with a margin' if margin else ''},"
            f" but only {free / 1e6:,.0f} MB are free.",
            fix,
        )


def _sync_tree(folder: Path) -> None:
    """Make all files and folders in `folder` durable."""
    paths = list(folder.rglob("*"))
    if len(paths) > _SYNCED_ONE_BY_ONE:
        os.sync()
        return
    for path in paths:
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    sync_folder(folder)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically with Linux's renameat2; False if that is not possible."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(done == 0)
