"""A tree of files in a tar archive, gzipped or not."""

import gzip
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, cast

from neuscale.data.sources.file_tree import GET_ANEW, REPACK, add_member, check_size, member_name
from neuscale.errors import DataError


class TarTree:
    """A tar archive, gzipped or not. A gzipped one is read whole once, which compares its checksum.

    `tarfile` takes a damaged or missing header for the end of the archive; here it is an error.
    """

    _ERRORS = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()
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
        """Nothing is left to check: every header has a checksum, and so has the gzip stream."""

    def _opened(self) -> IO[bytes]:
        stream = self.path.open("rb")
        if stream.read(2) != b"\x1f\x8b":
            stream.seek(0)
            return stream
        stream.close()
        return cast(IO[bytes], gzip.open(self.path, "rb"))

    def _list(self, stream: IO[bytes]) -> None:
        headers = _LastRead(stream)
        with tarfile.open(fileobj=cast(IO[bytes], headers), mode="r:") as tar:
            while (info := tar.next()) is not None:
                # It would keep every header, a kilobyte each.
                tar.members.clear()  # type: ignore[attr-defined]
                name = member_name(self.path, info.name)
                if name is None:
                    continue
                if not (info.isreg() or info.isdir()) or info.issparse():
                    raise DataError(f"{self.path}: {name}: a link or device, not a plain file.", REPACK)
                add_member(self, name, info.size, info.isdir())
                if info.isreg():
                    self._offsets[name] = info.offset_data
        if headers.last != bytes(tarfile.BLOCKSIZE):  # not the mark that ends an archive
            raise tarfile.ReadError("a header is damaged" if headers.last else "its end is missing")
        while stream.read(1 << 20):
            pass


class _LastRead:
    """A stream that keeps what was read last: where `tarfile` stops, the block it took for the end."""

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
