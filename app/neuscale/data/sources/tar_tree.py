"""A tree of files in a tar archive, compressed or not."""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from neuscale.data.sources.file_tree import GET_ANEW, REPACK, add_member, check_size, member_name
from neuscale.data.sources.listing import Listing
from neuscale.errors import DataError

try:
    from backports import zstd
except ImportError:
    zstd = None  # type: ignore[assignment]

# Headers that extend the next one: a long name, a link target, or pax fields.
_EXTENSIONS = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}


_MAX_EXTENSION, _MAX_CHAIN = 1 << 20, 16


# Suffixes of tar archives, compressed or not.
SUFFIXES = (
    ".tar",
    *(f".tar{kind}" for kind in (".gz", ".bz2", ".xz", ".zst")),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst"),
)


def _open_zstd(path: Path, _: str) -> IO[bytes]:
    if zstd is None:
        raise DataError(
            f"{path}: it is compressed by Zstandard, for which a package is missing.",
            "Install it: pip install 'neuscale[zstd]'",
        )
    return cast(IO[bytes], zstd.open(path))


# First bytes of compressed files, and the function that opens them.
COMPRESSIONS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}


class TarTree:
    """A tar archive as a FileTree, compressed by gzip, bzip2, xz or Zstandard, or not at all.

    A compressed archive is read completely once, which verifies its checksum. `encoding`: encoding of the
    names, if not UTF-8.

    `tarfile` treats a damaged or missing header as the end of the archive; here it is an error.
    """

    # RecursionError: `tarfile` reads a chain of extended headers recursively.
    _ERRORS = (
        *(tarfile.TarError, zlib.error, lzma.LZMAError, *((zstd.ZstdError,) if zstd is not None else ())),
        *(EOFError, OSError, ValueError, OverflowError, RecursionError),
    )

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.path = path
        self.encoding = encoding or "utf-8"
        self.warnings: list[str] = []
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()
        self.listing: Listing | None = None
        self.listing_bytes = 0
        self._offsets: dict[str, int] = {}
        try:
            with self._opened() as stream:
                self._list(stream)
        except self._ERRORS as error:
            raise DataError(f"{path}: not a whole tar archive ({error}).", GET_ANEW) from None

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See FileTree."""
        ordered = sorted(names, key=self._offsets.__getitem__)
        try:
            with self._opened() as stream:
                for name in ordered:
                    check_size(self.path, name, self.files[name])
                    stream.seek(self._offsets[name])
                    data = stream.read(self.files[name])
                    if len(data) != self.files[name]:
                        raise EOFError(f"it ends in {name}")
                    yield name, data
        except self._ERRORS as error:
            raise DataError(f"{self.path}: damaged ({error}).", GET_ANEW) from None

    def check_rest(self, used: Collection[str]) -> None:
        """Do nothing: every header has a checksum, and so has the gzip stream."""

    def _opened(self) -> IO[bytes]:
        stream = self.path.open("rb")
        head = stream.read(8)
        for beginning, opened in COMPRESSIONS.items():
            if head.startswith(beginning):
                stream.close()
                return cast(IO[bytes], opened(self.path, "rb"))
        stream.seek(0)
        return stream

    def _list(self, stream: IO[bytes]) -> None:
        headers = _LastRead(stream)
        with tarfile.open(
            fileobj=cast(IO[bytes], headers), mode="r:", tarinfo=_limited_header(), encoding=self.encoding
        ) as tar:
            while (info := tar.next()) is not None:
                # `tarfile` would keep every header, a kilobyte each.
                tar.members.clear()  # type: ignore[attr-defined]
                name = member_name(self.path, info.name)
                if name is None:
                    continue
                if info.islnk():
                    self._add_hard_link(name, info.linkname)
                    continue
                if not (info.isreg() or info.isdir()) or info.issparse():
                    kind = "a symbolic link" if info.issym() else "a device or the like"
                    raise DataError(f"{self.path}: {name}: {kind}, not a plain file.", REPACK)
                add_member(self, name, info.size, info.isdir())
                if info.isreg():
                    self._offsets[name] = info.offset_data
        if headers.last != bytes(tarfile.BLOCKSIZE):  # not the end-of-archive block
            raise tarfile.ReadError("a header is damaged" if headers.last else "its end is missing")
        while stream.read(1 << 20):
            pass

    def _add_hard_link(self, name: str, target: str) -> None:
        """Add another name of a file that came before it."""
        there = member_name(self.path, target)
        if there not in self._offsets:
            raise DataError(
                f"{self.path}: {name}: a hard link to '{target}', which is not before it.", REPACK
            )
        add_member(self, name, self.files[there], is_folder=False)
        self._offsets[name] = self._offsets[there]


def _limited_header() -> type[tarfile.TarInfo]:
    """Header class for one archive that limits extended headers (long names, pax fields).

    `tarfile` itself reads an extension of any size at once, keeps the global ones, and follows a list of
    holes (sparse files) through any number of blocks.
    """
    extensions = 0
    global_bytes = 0

    class Header(tarfile.TarInfo):
        # Not in `frombuf`, the public hook, which later versions of Python bypass.
        def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
            nonlocal extensions, global_bytes
            is_extension = self.type in _EXTENSIONS
            extensions = extensions + 1 if is_extension else 0
            if self.type == tarfile.XGLTYPE:
                global_bytes += self.size
            if is_extension and (max(self.size, global_bytes) > _MAX_EXTENSION or extensions > _MAX_CHAIN):
                raise tarfile.ReadError(f"a header is extended by more than {_MAX_EXTENSION:,} bytes")
            if self.type == tarfile.GNUTYPE_SPARSE:
                raise tarfile.ReadError(f"{self.name} has holes")
            processed: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
            return processed

        def _proc_gnusparse_10(self, *_: object) -> NoReturn:
            raise tarfile.ReadError(f"{self.name} has holes")

    return Header


class _LastRead:
    """A stream that keeps the last block read: after `tarfile` stops, the block that it took for the end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        self.last = self._stream.read(size)
        return self.last

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
