"""A tree of files in a zip archive."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

from neuscale.data.sources.file_tree import GET_ANEW, REPACK, add_member, check_size, member_name
from neuscale.data.sources.zip_runs import read_plain
from neuscale.errors import DataError


class ZipTree:
    """A zip archive. Contents are compared with their CRC-32 as they are read."""

    _ERRORS = (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        NotImplementedError,  # a compression method that does not exist
        RuntimeError,  # encrypted, or so it says
        ValueError,
        OverflowError,
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            recorded = _recorded_count(path)
        except self._ERRORS as error:
            raise DataError(f"{path}: not a whole zip archive ({error}).", GET_ANEW) from None
        # A damaged length swallows the members behind it, which `zipfile` does not notice.
        if recorded not in (len(self._zip.infolist()), len(self._zip.infolist()) & 0xFFFF):
            found = len(self._zip.infolist())
            raise DataError(f"{path}: it lists {found} of its {recorded} members.", GET_ANEW)
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            name = member_name(path, info.filename)
            if name is None:
                continue
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise DataError(f"{path}: {name}: a link or device, not a file.", REPACK)
            add_member(self, name, info.file_size, info.is_dir())
            if not info.is_dir():
                self._infos[name] = info

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See FileTree."""
        wanted = {id(self._infos[name]): name for name in names}
        for name in names:
            check_size(self.path, name, self.files[name])
        infos = [self._infos[name] for name in names]
        try:
            for info, data in read_plain(self.path, infos, self._zip.infolist(), self._zip.start_dir):
                name = wanted[id(info)]
                yield name, data if data is not None else self._read_with_zipfile(name, info)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error.strerror}).", "Check its permissions and the disk."
            ) from None

    def _read_with_zipfile(self, name: str, info: zipfile.ZipInfo) -> bytes:
        try:
            with self._zip.open(info) as stream:
                # Not read(): it would unpack all there is, however much more than the directory says.
                data = stream.read(info.file_size + 1)
        except self._ERRORS as error:
            raise DataError(f"{self.path}: {name}: damaged ({error}).", GET_ANEW) from None
        if len(data) != info.file_size:
            raise DataError(f"{self.path}: {name}: cut short.", GET_ANEW)
        return data

    def check_rest(self, used: Collection[str]) -> None:
        """Compare the names in the directory with those beside the contents (opening does that)."""
        known = {id(self._infos[name]) for name in used}
        for info in self._zip.infolist():
            if id(info) in known:
                continue
            try:
                self._zip.open(info).close()
            except self._ERRORS as error:
                raise DataError(f"{self.path}: {info.filename}: damaged ({error}).", GET_ANEW) from None


def _recorded_count(path: Path) -> int:
    """The number of members that the archive's end records (APPNOTE.TXT 4.3.14 to 4.3.16).

    Programs without the 64-bit extension record it modulo 65536.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        # The end record, at most 64 KB of comment behind it, and the 64-bit locator before it.
        start = max(0, size - 65536 - 22 - 20)
        stream.seek(start)
        tail = stream.read()
        end = tail.rfind(b"PK\x05\x06")
        (count,) = struct.unpack_from("<H", tail, end + 10)
        locator = tail[max(0, end - 20) : end]
        if not locator.startswith(b"PK\x06\x07"):
            return int(count)
        stream.seek(struct.unpack_from("<Q", locator, 8)[0])
        record = stream.read(56)
        if not record.startswith(b"PK\x06\x06"):
            raise zipfile.BadZipFile("its 64-bit end record is not where it should be")
        return int(struct.unpack_from("<Q", record, 32)[0])
