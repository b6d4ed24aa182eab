"""Writing files so that a reader sees all of one or none of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes the contents of `path` durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replaces `path` by `content`: written beside it, synced, renamed."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def make_folder(folder: Path, exist_ok: bool = True) -> None:
    """Makes `folder` and those above it that are missing, their names durable."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=exist_ok)
    for path in new:
        sync_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to, whose file then takes its place; on an error it is removed."""
    part = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield part
        sync_file(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
