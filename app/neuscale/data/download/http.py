"""Download a file over HTTP, resuming an earlier download from any mirror.

Received bytes stay in a part file, and a mirror is asked for the bytes that follow (RFC 9110, 14.2). The
catalogue's size and md5 tell when the file is complete and correct, so no ETag is needed, and one mirror
can continue the download of another.
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


# Seconds between attempts after a connection failed; they start over whenever more bytes were received.
_WAITS = (0.5, 1.0, 2.0, 4.0)


_CHUNK = 1 << 16


class MirrorFailed(Exception):
    """The mirror did not deliver the file; the message says why."""


class _BrokeOff(Exception):
    """The connection failed or ended too early; the next attempt may succeed."""


def download(url: str, file: SourceFile, part: Path, progress: Progress) -> FileIdentity:
    """Complete `part` from `url`, compare its md5, and return its identity.

    Raises MirrorFailed, and then leaves `part` for the next mirror or the next attempt to resume
    from; UserError if the disk cannot be written.
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
            begun_here = True  # the beginning came from another mirror: download all of it once from here
    except OSError as error:
        raise disk_error(error, part.parent) from error


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _complete(url: str, file: SourceFile, part: Path, progress: Progress) -> None:
    """Connect until the part is complete; give up after several connections without new bytes."""
    most = _size(part)
    waits: Iterator[float] = iter(())  # no retries for a mirror that has sent nothing yet
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
    """Append the bytes of one connection to the part."""
    import requests  # takes longer to import than most commands run
    import urllib3

    try:
        have = _size(part)
        response = _ask(url, have)
        if have and not _goes_on(response, have, file):
            if response.status_code in (206, 416):  # another range than requested, or none
                response.close()
                response = _ask(url, 0)
            # The server does not support ranges and sends the whole file: skip the bytes we have.
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
    except requests.RequestException as error:  # is an OSError, but not one of the disk
        raise MirrorFailed(str(error) or type(error).__name__) from None
    except urllib3.exceptions.TimeoutError:
        raise _BrokeOff("no answer in time") from None
    except urllib3.exceptions.HTTPError:
        raise _BrokeOff("no connection, or it broke off") from None


def _ask(url: str, first: int) -> "requests.Response":
    """Response to a request for the file from byte `first` on."""
    import requests

    # No compression in transit: the published bytes are counted and compared.
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
    """Append a response that begins with byte `first` of the file, skipping bytes already in the part."""
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
