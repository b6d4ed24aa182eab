"""Plain members of a zip, many with one read of the file: `zipfile` makes several calls for each.

A member is given here where everything about it is as its directory entry says: local header,
name, method (stored or deflated), lengths and CRC-32 (APPNOTE.TXT 4.3.7). For anything else the
content is None, and `zipfile` reads it and says what is wrong.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _PATCHED, _STRONGLY_ENCRYPTED, _UTF8 = 0x1, 0x20, 0x40, 0x800
_UNREAD = _ENCRYPTED | _PATCHED | _STRONGLY_ENCRYPTED

# What is read at once; images lie densely, so that little else is among it.
_RUN_BYTES = 1 << 20
_MOST_EXTRA = 1 << 16  # the local header's own fields, of a length that its entry does not give
_MOST_BYTES = 1 << 24  # of one member; `zipfile` reads larger ones piece by piece


class _Extent(NamedTuple):
    info: zipfile.ZipInfo
    start: int
    end: int


def read_plain(
    path: Path, infos: Sequence[zipfile.ZipInfo], all_infos: Sequence[zipfile.ZipInfo], directory: int
) -> Iterator[tuple[zipfile.ZipInfo, bytes | None]]:
    """Each of `infos` with its content, or None where it is not plain, in the order in which they are stored.

    `all_infos` and `directory`, the offset of the directory, tell where each member ends at the latest.
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
    """Members that lie so close together that one read of about a megabyte has them all."""
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
