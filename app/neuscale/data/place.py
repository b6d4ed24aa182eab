"""Puts a folder in place whole: made under another name, renamed when it is complete.

What a killed process leaves is removed by `sweep_leftovers`, called under the lock of the
next one.
"""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuscale.errors import disk_error
from neuscale.files import sync_folder

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def partial_folder(folder: Path) -> Path:
    """Where this process makes what will be `folder`."""
    return folder.with_name(f".{folder.name}.partial-{os.getpid()}")


def move_into_place(partial: Path, folder: Path) -> None:
    """Renames `partial` to `folder`; an older one of that name is there until the new one is."""
    older = partial  # its name after an exchange
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
    sync_folder(folder.parent)  # before the older one goes: a power cut could give it its name back
    shutil.rmtree(older, ignore_errors=True)


def sweep_leftovers(folder: Path) -> None:
    """Remove what killed processes left beside `folder`; call this under its lock only.

    One that was killed between two renames left the older data set under another name: it
    is put back.
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
    """Turns what the disk refuses into the message for `folder`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, folder) from error


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step, with Linux's renameat2; False where that is not possible."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(done == 0)
