"""The names, sizes and times of a folder's files: what a data set was made from, and what changed since."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LISTING_FILE = "source_files.txt.gz"

_SHOWN = 3  # names of each kind of change


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its name below the folder, its bytes, and when it was changed, in ns since 1970."""

    name: str
    size: int
    time: int

    @property
    def key(self) -> list[str]:
        """It sorts as a folder is walked."""
        return self.name.split("/")

    def line(self) -> str:
        """A line of the listing; a name may hold anything but a NUL."""
        return f"{self.size}\t{self.time}\t{self.name}\0"


class Listing:
    """A listing that is made while a folder is walked, and kept compressed: some 15 bytes a file."""

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
        """The content of LISTING_FILE; nothing can be added after it."""
        self._pieces.append(self._compressor.flush())
        return b"".join(self._pieces)

    def record(self) -> dict[str, Any]:
        """Its number of files, their bytes and its sha256, for a data set's record."""
        return {"files": self.files, "bytes": self.bytes, "sha256": self._digest.hexdigest()}


def digest(entries: Iterable[Entry]) -> str:
    """sha256 of a listing, as its record has it."""
    found = hashlib.sha256()
    for entry in entries:
        found.update(entry.line().encode(errors="surrogateescape"))
    return found.hexdigest()


def stored_entries(path: Path) -> Iterator[Entry]:
    """The files that LISTING_FILE names. OSError, EOFError, zlib.error or ValueError where it is damaged."""
    rest = b""
    with gzip.open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            *lines, rest = (rest + piece).split(b"\0")
            for line in lines:
                size, time, name = line.split(b"\t", 2)
                yield Entry(name.decode(errors="surrogateescape"), int(size), int(time))


@dataclass
class Changes:
    """Files that are new, gone or of another size, or were only written again; the first few by name."""

    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Count a change of a kind."""
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
    """The differences between two listings, each in the order of a walk."""
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
