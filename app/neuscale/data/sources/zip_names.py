"""Names in a zip archive, which need not state their encoding (APPNOTE.TXT 4.4.4, 4.6.9, appendix D)."""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from neuscale.errors import UsageError

_UTF8_FLAG = 0x800

_UNICODE_PATH = 0x7075  # Info-ZIP's extra field with the name in UTF-8


def decoded_names(
    path: Path, infos: Sequence[zipfile.ZipInfo], encoding: str | None, warnings: list[str]
) -> list[str]:
    """Decode the name of each member in full, including any part after a NUL.

    A name that is marked as UTF-8, or has the extra field, is decoded as such. Other names are decoded
    with `encoding` if given; else as UTF-8 if all of them are valid UTF-8; else with code page 437, the
    format's own, with a line in `warnings`. Raises UsageError for an encoding that is unknown or does
    not fit.
    """
    unmarked = [
        info for info in infos if not info.flag_bits & _UTF8_FLAG and not info.orig_filename.isascii()
    ]
    known = {id(info): name for info in unmarked if (name := _unicode_path(info)) is not None}
    raw = {id(info): info.orig_filename.encode("cp437") for info in unmarked if id(info) not in known}
    if encoding is not None:
        chosen = encoding
    else:
        chosen = "utf-8" if all(map(_is_utf8, raw.values())) else "cp437"
        if chosen == "cp437":
            example = next(name for name in raw.values() if not _is_utf8(name)).decode("cp437")
            warnings.append(
                f"{path}: {len(raw):,} names are in an encoding that it does not name, read as code page 437"
                f" ('{example}'): if they are wrong, set `encoding`, for example to cp932, gbk or cp1252"
            )
    try:
        known |= {key: name.decode(chosen) for key, name in raw.items()}
    except LookupError:
        raise UsageError(
            f"`encoding` {encoding}: there is no such encoding.", "For example: cp932, gbk."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: `encoding` {encoding}: a name is not in it ({error.reason}).", "Give another, or none."
        ) from None
    return [known.get(id(info), info.orig_filename) for info in infos]


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unicode_path(info: zipfile.ZipInfo) -> str | None:
    """The UTF-8 name in the extra field, if its checksum shows that it belongs to this name."""
    extra = info.extra
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and len(content) == length > 5 and content[0] == 1:
            (checksum,) = struct.unpack_from("<L", content, 1)
            if checksum == zlib.crc32(info.orig_filename.encode("cp437")) and _is_utf8(content[5:]):
                return content[5:].decode("utf-8")
    return None
