"""Identity of a file: its size and its checksums."""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from neuscale.data.catalog import SourceFile
from neuscale.errors import DataError
from neuscale.progress import Progress

_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileIdentity:
    """Size in bytes and checksums of a file."""

    name: str
    bytes: int
    md5: str
    sha256: str


def file_identity(path: Path, progress: Progress) -> FileIdentity:
    """Read the file at `path` and compute its checksums. Raises DataError if it cannot be read."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as stream, progress.task(f"checksum of {path.name}", size, "B") as task:
            while chunk := stream.read(_CHUNK):
                md5.update(chunk)
                sha256.update(chunk)
                task.advance(len(chunk))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}).", "Check its permissions and the disk."
        ) from None
    return FileIdentity(path.name, size, md5.hexdigest(), sha256.hexdigest())


def is_published(identity: FileIdentity, path: Path, file: SourceFile) -> bool:
    """True if `path` is the published file, itself or, for a .gz, its content."""
    if identity.md5 == file.md5:
        return True
    return file.content_md5 is not None and _content_md5(path) == file.content_md5


def _content_md5(path: Path) -> str | None:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with gzip.open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except (OSError, EOFError, zlib.error):
        return None
    return digest.hexdigest()
