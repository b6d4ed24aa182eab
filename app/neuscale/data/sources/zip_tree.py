"""A tree of files in a zip archive."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from neuscale.data.sources.file_tree import GET_ANEW, REPACK, add_member, check_size, member_name
from neuscale.data.sources.listing import Listing
from neuscale.data.sources.zip_names import decoded_names
from neuscale.errors import DataError, is_refused, read_error

# Limit of the directory, which `zipfile` reads completely and stores in eight times the memory: about 2
# million files.
MAX_DIRECTORY_BYTES = 256 << 20


class ZipTree:
    """A zip archive as a FileTree. Contents are verified with their CRC-32 when they are read."""

    _ERRORS = (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        NotImplementedError,  # an unknown compression method
        RuntimeError,  # encrypted, or marked as encrypted
        ValueError,
        OverflowError,
    )

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.path = path
        self.warnings: list[str] = []
        try:
            recorded, directory_bytes = _recorded_directory(path)
            if directory_bytes > MAX_DIRECTORY_BYTES:
                raise DataError(
                    f"{path}: its directory of {directory_bytes:,} bytes exceeds {MAX_DIRECTORY_BYTES:,}.",
                    "Unpack it, and give the folder.",
                )
            self._zip = zipfile.ZipFile(path)
        except self._ERRORS as error:
            raise DataError(f"{path}: not a whole zip archive ({error}).", GET_ANEW) from None
        # A damaged length hides the members that follow, which `zipfile` does not notice.
        if recorded not in (len(self._zip.infolist()), len(self._zip.infolist()) & 0xFFFF):
            found = len(self._zip.infolist())
            raise DataError(f"{path}: it lists {found} of its {recorded} members.", GET_ANEW)
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()
        self.listing: Listing | None = None
        self.listing_bytes = 0
        self._infos: dict[str, zipfile.ZipInfo] = {}
        names = decoded_names(path, self._zip.infolist(), encoding, self.warnings)
        # Some Windows programs use backslashes as separators; elsewhere it is an ordinary character.
        backslash = not any("/" in name for name in names)
        for info, raw in zip(self._zip.infolist(), names, strict=True):
            name = member_name(path, raw, backslash)
            if name is None:
                continue
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise DataError(f"{path}: {name}: a link or device, not a file.", REPACK)
            is_folder = raw.endswith("\\" if backslash else "/")
            add_member(self, name, info.file_size, is_folder)
            if not is_folder:
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
            if is_refused(error):
                raise read_error(error, self.path) from None
            raise DataError(f"{self.path}: damaged ({error.strerror}).", GET_ANEW) from None

    def _read_with_zipfile(self, name: str, info: zipfile.ZipInfo) -> bytes:
        try:
            with self._zip.open(info) as stream:
                # Not read(): it would unpack everything, even if that is more than the directory states.
                data = stream.read(info.file_size + 1)
        except self._ERRORS as error:
            raise DataError(f"{self.path}: {name}: damaged ({error}).", GET_ANEW) from None
        if len(data) != info.file_size:
            raise DataError(f"{self.path}: {name}: cut short.", GET_ANEW)
        return data

    def check_rest(self, used: Collection[str]) -> None:
        """Compare the names in the directory with those in the local headers, by opening each member."""
        known = {id(self._infos[name]) for name in used}
        for info in self._zip.infolist():
            if id(info) in known:
                continue
            try:
                self._zip.open(info).close()
            except self._ERRORS as error:
                raise DataError(f"{self.path}: {info.filename}: damaged ({error}).", GET_ANEW) from None


def _recorded_directory(path: Path) -> tuple[int, int]:
    """Number of members and size of the directory, from the end record (APPNOTE.TXT 4.3.14 to 4.3.16).

    Programs without the 64-bit extension record the number modulo 65536.
    """
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        # The end record, up to 64 KB of comment after it, and the 64-bit locator before it.
        start = max(0, size - 65536 - 22 - 20)
        stream.seek(start)
        tail = stream.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0:
            raise zipfile.BadZipFile("its end is missing")
        count, directory_bytes = struct.unpack_from("<HL", tail, end + 10)
        locator = tail[max(0, end - 20) : end]
        if not locator.startswith(b"PK\x06\x07"):
            return count, directory_bytes
        stream.seek(struct.unpack_from("<Q", locator, 8)[0])
        record = stream.read(56)
        if not record.startswith(b"PK\x06\x06"):
            raise zipfile.BadZipFile("its 64-bit end record is not where it should be")
        count, directory_bytes = struct.unpack_from("<QQ", record, 32)
        return count, directory_bytes


_HEADER = struct.Struct("<4s5H3L2H")


_ENCRYPTED, _PATCHED, _STRONGLY_ENCRYPTED, _UTF8 = 0x1, 0x20, 0x40, 0x800


_UNREAD = _ENCRYPTED | _PATCHED | _STRONGLY_ENCRYPTED


# Bytes read at once; images are stored densely, so little else is read with them.
_RUN_BYTES = 1 << 20


_MOST_EXTRA = 1 << 16  # name and extra fields of the local header, whose lengths the directory does not give


_MOST_BYTES = 1 << 24  # of one member; larger ones are read by `zipfile` in pieces


class _Extent(NamedTuple):
    info: zipfile.ZipInfo
    start: int
    end: int


def read_plain(
    path: Path, infos: Sequence[zipfile.ZipInfo], all_infos: Sequence[zipfile.ZipInfo], directory: int
) -> Iterator[tuple[zipfile.ZipInfo, bytes | None]]:
    """Yield each of `infos` with its content, in storage order; None for members that `zipfile` must read.

    `all_infos` and `directory`, the offset of the directory, bound the end of each member.
    """
    for run in _runs(_extents(infos, all_infos, directory)):
        start, length = run[0].start, run[-1].end - run[0].start
        with path.open("rb", buffering=0) as stream:
            stream.seek(start)
            held = memoryview(stream.read(length) or b"")
        for info, begin, end in run:
            yield info, _content(info, held[begin - start : end - start])


def _extents(
    infos: Sequence[zipfile.ZipInfo], all_infos: Sequence[zipfile.ZipInfo], directory: int
) -> Iterator[_Extent]:
    offsets = sorted({info.header_offset for info in all_infos})
    follower = dict(zip(offsets, [*offsets[1:], directory], strict=True))
    for info in sorted(infos, key=lambda info: info.header_offset):
        start = info.header_offset
        longest = _HEADER.size + 2 * _MOST_EXTRA + info.compress_size
        end = min(follower[start], start + longest)
        yield _Extent(info, start, end if start < end < start + _MOST_BYTES else start)


def _runs(extents: Iterator[_Extent]) -> Iterator[list[_Extent]]:
    """Group members that are so close together that one read of about a megabyte contains them all."""
    run: list[_Extent] = []
    for extent in extents:
        if run and extent.end - run[0].start > _RUN_BYTES:
            yield run
            run = []
        run.append(extent)
    if run:
        yield run


def _content(info: zipfile.ZipInfo, held: memoryview) -> bytes | None:
    if len(held) < _HEADER.size:
        return None
    mark, _, flags, method, _, _, _, _, _, name_length, extra_length = _HEADER.unpack_from(held)
    begin = _HEADER.size + name_length + extra_length
    end = begin + info.compress_size
    if mark != b"PK\x03\x04" or flags & _UNREAD or info.flag_bits & _UNREAD or end > len(held):
        return None
    name = info.orig_filename.encode("utf-8" if flags & _UTF8 else "cp437", "replace")
    if held[_HEADER.size : _HEADER.size + name_length] != name or method != info.compress_type:
        return None
    if method == zipfile.ZIP_STORED:
        data = bytes(held[begin:end])
    elif method == zipfile.ZIP_DEFLATED:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflate.decompress(held[begin:end], info.file_size + 1)
        except zlib.error:
            return None
    else:
        return None
    return data if len(data) == info.file_size and zlib.crc32(data) == info.CRC else None
