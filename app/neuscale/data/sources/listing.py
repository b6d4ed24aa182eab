"""Listing of a source folder (names, sizes and times of its files), and its changes since preparation."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LISTING_FILE = "source_files.txt.gz"

_SHOWN = 3  # number of names shown for each kind of change


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: name relative to the folder, size in bytes, and modification time in ns since 1970."""

    name: str
    size: int
    time: int

    @property
    def key(self) -> list[str]:
        """Sort key in the order of a folder walk."""
        return self.name.split("/")

    def line(self) -> str:
        """A line of the listing, ended by a NUL, which no name can contain."""
        return f"{self.size}\t{self.time}\t{self.name}\0"


class Listing:
    """A listing that is built during a folder walk and kept compressed, at about 15 bytes per file."""

    def __init__(self) -> None:
        self.files = self.bytes = 0
        self._digest = hashlib.sha256()
        self._compressor = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        self._pieces: list[bytes] = []

    def add(self, entry: Entry) -> None:
        """Add the next file."""
        line = entry.line().encode(errors="surrogateescape")
        self.files += 1
        self.bytes += entry.size
        self._digest.update(line)
        if piece := self._compressor.compress(line):
            self._pieces.append(piece)

    def finished(self) -> bytes:
        """The content of LISTING_FILE; nothing can be added afterwards."""
        self._pieces.append(self._compressor.flush())
        return b"".join(self._pieces)

    def record(self) -> dict[str, Any]:
        """Number of files, their bytes and the listing's sha256, for a data set's record."""
        return {"files": self.files, "bytes": self.bytes, "sha256": self._digest.hexdigest()}


def digest(entries: Iterable[Entry]) -> str:
    """SHA-256 of a listing, as in its record."""
    found = hashlib.sha256()
    for entry in entries:
        found.update(entry.line().encode(errors="surrogateescape"))
    return found.hexdigest()


def stored_entries(path: Path) -> Iterator[Entry]:
    """Read LISTING_FILE. Raises OSError, EOFError, zlib.error or ValueError if it is damaged."""
    rest = b""
    with gzip.open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            *lines, rest = (rest + piece).split(b"\0")
            for line in lines:
                size, time, name = line.split(b"\t", 2)
                yield Entry(name.decode(errors="surrogateescape"), int(size), int(time))


@dataclass
class Changes:
    """Numbers of files that are new, gone, of another size, or only rewritten, and the first few names."""

    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count a change of kind `kind`."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        names: list[str] = getattr(self, kind)
        if len(names) < _SHOWN:
            names.append(name)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        words = {
            "new": "new",
            "gone": "gone",
            "resized": "of another size",
            "rewritten": "written anew since",
        }
        parts = []
        for kind, what in words.items():
            count = self.counts.get(kind, 0)
            if count:
                shown = ", ".join(getattr(self, kind)) + (", …" if count > _SHOWN else "")
                parts.append(f"{count:,} {'file is' if count == 1 else 'files are'} {what} ({shown})")
        return "; ".join(parts)


def changes(before: Iterable[Entry], now: Iterable[Entry]) -> Changes:
    """Differences between two listings, both in the order of a folder walk."""
    found = Changes()
    old, new = iter(before), iter(now)
    was, there = next(old, None), next(new, None)
    while was is not None or there is not None:
        if there is None or (was is not None and was.key < there.key):
            assert was is not None
            found.add("gone", was.name)
            was = next(old, None)
        elif was is None or there.key < was.key:
            found.add("new", there.name)
            there = next(new, None)
        else:
            if was.size != there.size:
                found.add("resized", there.name)
            elif was.time != there.time:
                found.add("rewritten", there.name)
            was, there = next(old, None), next(new, None)
    return found
