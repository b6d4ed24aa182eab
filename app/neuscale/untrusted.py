"""Safe reading and printing of files and text that another user may have written.

A run folder, a sweep list or a data set copied from somebody else is treated as data only: the names in
it must not lead out of its folder, a record must be a regular file of a plausible size, and its text
must not control the terminal.
"""

import errno
import io
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

MIB = 1 << 20
# Size limits of records, each far above the largest that the program writes.
RECORD_BYTES = 64 * MIB
LINES_BYTES = 4096 * MIB  # for a file with one line per image or step
LINE_BYTES = MIB

# O_NONBLOCK: do not wait for the other end of a pipe. Windows has neither it nor O_NOFOLLOW.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_LONGEST_NAME = 255  # bytes, on the usual file systems
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROLS_OF_LINES = re.compile(_CONTROLS.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def is_plain_name(name: Any) -> bool:
    """True for the name of a single file or folder: not a path, no control characters, at most 255 bytes."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not re.search(r"[/\\]", name)
        and not _CONTROLS.search(name)
        and len(os.fsencode(name)) <= _LONGEST_NAME
    )


def open_regular(path: Path, limit: int = LINES_BYTES, links: bool = False) -> io.BufferedReader:
    """Open the file at `path` for reading.

    Raises OSError for a link (unless `links` is true), a pipe, a device or a folder, without blocking on
    any of them, and for a file of more than `limit` bytes.
    """
    try:
        handle = os.open(path, _READ if links else _READ | _NO_LINKS)
    except ValueError as error:  # a NUL in the path
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), printable(path)) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_plain(path, "it is a link") from None
        if error.errno == errno.ENXIO:  # a socket
            raise _not_plain(path, "it is not a regular file") from None
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(handle)
        if stat.S_ISREG(status.st_mode):
            raise _not_plain(path, f"{status.st_size:,} bytes are too many: the limit is {limit:,}")
        raise _not_plain(path, "it is not a regular file")
    return os.fdopen(handle, "rb")


def read_regular(path: Path, limit: int = RECORD_BYTES) -> bytes:
    """The content of the file at `path`. Raises OSError as `open_regular` does."""
    with open_regular(path, limit) as file:
        content = file.read(limit + 1)  # the file may grow meanwhile
    if len(content) > limit:
        raise _not_plain(path, f"it has more than {limit:,} bytes")
    return content


def read_record(path: Path, limit: int = RECORD_BYTES) -> str:
    """The text of the file at `path`. Raises OSError as `open_regular` does, and UnicodeDecodeError."""
    return read_regular(path, limit).decode("utf-8")


def read_json(path: Path, limit: int = RECORD_BYTES) -> Any:
    """The JSON value in the file at `path`. Raises OSError as `open_regular` does, and ValueError."""
    return parse_json(read_record(path, limit))


def parse_json(text: str | bytes) -> Any:
    """The JSON value of `text`. Raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_regular(path: Path) -> None:
    """Raise OSError unless `path` is a regular file and no link, for readers that open it by its name."""
    open_regular(path, limit=1 << 62).close()


def is_own_folder(path: Path) -> bool:
    """True for a folder (not a link) that this user or root owns and that nobody else may write to."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if not hasattr(os, "getuid"):  # Windows: folders there are the user's unless they were shared
        return stat.S_ISDIR(status.st_mode)
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(status.st_mode) and status.st_uid in (0, os.getuid()) and not others_write


def reason_of(error: Exception) -> str:
    """Reason of an error without its file name, for a message that names the file itself."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def printable(text: Any, lines: bool = False) -> str:
    r"""`text` with control characters escaped, as in `\x1b`; with `lines`, tabs and line breaks are kept."""
    pattern = _CONTROLS_OF_LINES if lines else _CONTROLS
    return pattern.sub(lambda found: _escape(found[0]), str(text))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _not_plain(path: Path, reason: str) -> OSError:
    return OSError(errno.EINVAL, reason, str(path))
