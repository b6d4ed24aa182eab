"""Interface to files in a folder, a zip or a tar, read in place: nothing is ever unpacked to disk.

All have the same interface: a mapping of names with '/' to sizes, and contents on demand. Names that
would leave the tree ('/x', '../x'), links and devices in archives are rejected.
"""

import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from neuscale.data.sources.listing import Listing
from neuscale.errors import DataError

# Far above any image for training, far below the memory of a machine.
MAX_MEMBER_BYTES = 256 * 1024 * 1024


# Names that desktops, network disks, version control and file systems create in folders, in lower case.
IGNORED_NAMES = frozenset(
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)


# Limits of a name, as in Linux. The depth of names determines how much memory a listing needs.
MAX_PATH_BYTES, MAX_PART_BYTES, MAX_LEVELS = 4096, 255, 100


# Memory for the listing of an archive, about 5 million files.
MAX_LISTING_BYTES = 2 << 30


_SHOWN = 60  # characters shown of a name that is too long


_BYTES_PER_NAME = 300  # two dict entries and two numbers, besides the name itself


# Advice for a damaged archive, and for one with unsupported contents.
GET_ANEW = "Get or make it anew (it is damaged, or was not copied to its end), then run the command again."


REPACK = "Make the archive anew from plain files and run the command again."


class FileTree(Protocol):
    """Files by name. `files` maps each to its size in bytes; `folders` contains all folders.

    `listing_bytes`: approximate memory of the two. `warnings`: sentences about how names were decoded.
    """

    path: Path
    files: dict[str, int]
    folders: set[str]
    listing_bytes: int
    warnings: list[str]

    @property
    def listing(self) -> Listing | None:
        """Names, sizes and times of a folder's files; None for an archive, which has a checksum."""

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of each file in `names`, in the order that is fastest to read."""

    def check_rest(self, used: Collection[str]) -> None:
        """Raise DataError if files not in `used` are damaged: a damaged name can hide an image."""


def check_text(where: Path, name: str) -> None:
    """Raise DataError for a file name that is not valid text and so cannot be shown or recorded."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("ascii", "backslashreplace").decode()
        raise DataError(
            f"{where}: {shown}: this name is not valid UTF-8.",
            "Rename it; of an archive, set `encoding` to that of its names.",
        ) from None


def check_name(where: Path, name: str) -> None:
    """Raise DataError for a file name that is invalid, too long or nested too deeply."""
    check_text(where, name)
    long = len(name) * 4 > MAX_PART_BYTES  # at most four bytes per character
    if "\0" in name:
        problem = "it has a NUL"
    elif name.count("/") >= MAX_LEVELS:
        problem = f"it is more than {MAX_LEVELS} folders deep"
    elif long and len(name.encode()) > MAX_PATH_BYTES:
        problem = f"it has more than {MAX_PATH_BYTES:,} bytes"
    elif long and any(len(part.encode()) > MAX_PART_BYTES for part in name.split("/")):
        problem = f"a part of it has more than {MAX_PART_BYTES} bytes"
    else:
        return
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
    raise DataError(f"{where}: {shown}: no name of an image: {problem}.", "Rename it.")


def is_ignored(part: str) -> bool:
    """True for files and folders that desktops, network disks and version control create."""
    return part.startswith(".") or part.lower() in IGNORED_NAMES


def member_name(archive: Path, raw: str, backslash: bool = False) -> str | None:
    """Normalised name of an archive member, or None if it is ignored; `backslash`: also a separator.

    Raises DataError for a name that leaves the tree, is too long or nested too deeply.
    """
    check_name(archive, raw)
    # Plain strings instead of PurePosixPath, which takes half a second for 100,000 names.
    slashed = raw.replace("\\", "/") if backslash else raw
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    if slashed.startswith("/") or ".." in parts or (parts and parts[0].endswith(":")):
        raise DataError(f"{archive}: '{raw}' would lie outside of the archive.", REPACK)
    if not parts or any(is_ignored(part) for part in parts):
        return None
    return "/".join(parts)


def add_member(tree: FileTree, name: str, size: int, is_folder: bool) -> None:
    """Add a file with the folders above it, or a folder.

    Raises DataError if a file already exists, or if the listing needs too much memory.
    """
    folder = name if is_folder else name.rpartition("/")[0]
    while folder and folder not in tree.folders:
        tree.folders.add(folder)
        tree.listing_bytes += _BYTES_PER_NAME + sys.getsizeof(folder)
        folder = folder.rpartition("/")[0]
    if not is_folder:
        if name in tree.files:
            raise DataError(f"{tree.path}: {name}: it is there twice.", REPACK)
        tree.files[name] = size
        tree.listing_bytes += _BYTES_PER_NAME + sys.getsizeof(name)
    if tree.listing_bytes > MAX_LISTING_BYTES:
        raise DataError(
            f"{tree.path}: its list of names takes more than {MAX_LISTING_BYTES / 2**30:g} GiB of memory.",
            "Unpack it, and give the folder.",
        )


def check_size(archive: Path, name: str, size: int) -> None:
    """Raise DataError if a file is too large to be an image."""
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise DataError(
            f"{archive}: {name}: {size / 1e6:,.0f} MB for one file is out of all proportion.",
            "Remove it and run the command again.",
        )
