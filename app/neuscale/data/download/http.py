"""One file over HTTP that goes on where an earlier download ended, on whichever mirror that was.

What has come stays in a part file. A mirror is asked for the bytes behind it (RFC 9110, 14.2); the
catalogue's size and md5 say when the file is whole and right, so that no ETag needs to be kept and two
mirrors can complete each other.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from neuscale.data.catalog import SourceFile
from neuscale.data.download.checksum import FileIdentity, file_identity
from neuscale.errors import disk_error
from neuscale.progress import Progress

if TYPE_CHECKING:
    import requests


_CONNECT_SECONDS, _STALL_SECONDS = 5.0, 30.0


# Between tries of a connection that broke off; all of them again whenever more has come.
_WAITS = (0.5, 1.0, 2.0, 4.0)


_CHUNK = 1 << 16


class MirrorFailed(Exception):
    """The mirror did not deliver the file; the message says why."""


class _BrokeOff(Exception):
    """The connection ended too early; the next one may succeed."""


def download(url: str, file: SourceFile, part: Path, progress: Progress) -> FileIdentity:
    """Complete `part` from `url` and return its identity, the md5 compared.

    Raises MirrorFailed, and then leaves in `part` what the next mirror or the next run can go
    on from; UserError where the disk cannot be written.
    """
    try:
        if _size(part) > file.bytes:
            part.unlink()
        begun_here = _size(part) == 0
        while True:
            _complete(url, file, part, progress)
            identity = file_identity(part, progress)
            if identity.md5 == file.md5:
                return identity
            part.unlink()
            if begun_here:
                raise MirrorFailed("what came has another checksum")
            begun_here = True  # the beginning came from elsewhere: once more, all of it from here
    except OSError as error:
        raise disk_error(error, part.parent) from error


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _complete(url: str, file: SourceFile, part: Path, progress: Progress) -> None:
    """Connect until the part has the file's size; gives up when several connections bring nothing new."""
    most = _size(part)
    waits: Iterator[float] = iter(())  # a mirror that has given nothing yet is not waited for
    if 0 < most < file.bytes:
        progress.message(f"{file.name}: resuming at {most / 1e6:,.0f} of {file.bytes / 1e6:,.0f} MB")
    while _size(part) < file.bytes:
        try:
            _receive(url, file, part, progress)
        except _BrokeOff as reason:
            if _size(part) > most:
                most, waits = _size(part), iter(_WAITS)
            wait = next(waits, None)
            if wait is None:
                raise MirrorFailed(str(reason)) from None
            time.sleep(wait)


def _receive(url: str, file: SourceFile, part: Path, progress: Progress) -> None:
    """Add to the part what one connection gives."""
    import requests  # takes longer to import than most commands run
    import urllib3

    try:
        have = _size(part)
        response = _ask(url, have)
        if have and not _goes_on(response, have, file):
            if response.status_code in (206, 416):  # other bytes than asked for, or none
                response.close()
                response = _ask(url, 0)
            # The server does not know ranges and sends all of it: what is there already is passed over.
            have = 0
        with response:
            _check(response, have, file)
            _add(response, have, file, part, progress)
    except requests.Timeout:
        raise _BrokeOff("no answer in time") from None
    except requests.exceptions.SSLError:
        raise MirrorFailed("its certificate was not accepted") from None
    except requests.ConnectionError:
        raise _BrokeOff("no connection, or it broke off") from None
    except requests.RequestException as error:  # an OSError itself, but not the disk's
        raise MirrorFailed(str(error) or type(error).__name__) from None
    except urllib3.exceptions.TimeoutError:
        raise _BrokeOff("no answer in time") from None
    except urllib3.exceptions.HTTPError:
        raise _BrokeOff("no connection, or it broke off") from None


def _ask(url: str, first: int) -> "requests.Response":
    """The answer to a request for the file from byte `first` on."""
    import requests

    # Not compressed on the way: the bytes are counted and compared as they are published.
    headers = {"Accept-Encoding": "identity"}
    if first:
        headers["Range"] = f"bytes={first}-"
    return requests.get(url, headers=headers, stream=True, timeout=(_CONNECT_SECONDS, _STALL_SECONDS))


def _goes_on(response: "requests.Response", first: int, file: SourceFile) -> bool:
    """True if a response is the rest of the file, from byte `first` on."""
    given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    return (
        response.status_code == 206
        and given is not None
        and int(given[1]) == first
        and given[2] in ("*", str(file.bytes))
    )


def _check(response: "requests.Response", first: int, file: SourceFile) -> None:
    status = response.status_code
    if status in (408, 429) or status >= 500:
        raise _BrokeOff(f"the server answered {status}")
    if status != (206 if first else 200):
        raise MirrorFailed(f"the server answered {status}")
    length = response.headers.get("Content-Length", "")
    if not first and length.isdecimal() and int(length) != file.bytes:
        raise MirrorFailed(f"what it has is another file ({length} bytes instead of {file.bytes})")


def _add(response: "requests.Response", first: int, file: SourceFile, part: Path, progress: Progress) -> None:
    """Append what comes, which begins with byte `first` of the file, behind the part's end."""
    have, at = _size(part), first
    with progress.task(f"downloading {file.name}", file.bytes, "B") as task, part.open("ab") as stream:
        task.advance(first)
        for chunk in response.raw.stream(_CHUNK, decode_content=False):
            if at + len(chunk) > file.bytes:
                stream.truncate(have)
                raise MirrorFailed(f"what it has is another file (more than {file.bytes} bytes)")
            stream.write(chunk[max(0, have - at) :])
            at += len(chunk)
            task.advance(len(chunk))
    if at < file.bytes:
        raise _BrokeOff("no connection, or it broke off")
