"""A tree of files in a folder, a zip or a tar, read in place: nothing is ever unpacked to disk.

The three look the same from outside: names with '/' to sizes, and contents on demand. Names
that would leave the tree ('/x', '../x'), links and devices in archives are refused.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from neuscale.errors import DataError

# Far above any image that one would train on, far below what fills a memory.
MAX_MEMBER_BYTES = 256 * 1024 * 1024

IGNORED_NAMES = {"__MACOSX", "Thumbs.db", "desktop.ini"}

# What the user does about a damaged archive, and about one that was made in a way that is not read.
GET_ANEW = "Get or make it anew (it is damaged, or was not copied to its end), then run the command again."
REPACK = "Make the archive anew from plain files and run the command again."


class FileTree(Protocol):
    """Files by name. `files` maps each to its size in bytes; `folders` are all folders above and between."""

    path: Path
    files: dict[str, int]
    folders: set[str]

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file in `names`, in the order that is fastest to read."""

    def check_rest(self, used: Collection[str]) -> None:
        """Raise DataError where what is not in `used` is damaged: a damaged name can hide an image."""


def check_text(where: Path, name: str) -> None:
    """DataError where a file's name cannot be shown or recorded."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("ascii", "backslashreplace").decode()
        raise DataError(f"{where}: {shown}: this name is not valid UTF-8.", "Rename it.") from None


def is_ignored(part: str) -> bool:
    """Whether a file or folder is the file browser's and not the user's."""
    return part.startswith(".") or part in IGNORED_NAMES


def member_name(archive: Path, raw: str) -> str | None:
    """A member's name without './', or None where it is to be ignored; DataError where it leaves the tree."""
    check_text(archive, raw)
    # Plain text and not PurePosixPath, which takes half a second for 100,000 names.
    slashed = raw.replace("\\", "/")
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    if slashed.startswith("/") or ".." in parts or (parts and parts[0].endswith(":")):
        raise DataError(f"{archive}: '{raw}' would lie outside of the archive.", REPACK)
    if not parts or any(is_ignored(part) for part in parts):
        return None
    return "/".join(parts)


def add_member(tree: FileTree, name: str, size: int, is_folder: bool) -> None:
    """Add a file with the folders above it, or a folder; DataError where a file is there already."""
    above = name.rpartition("/")[0]
    while above and above not in tree.folders:
        tree.folders.add(above)
        above = above.rpartition("/")[0]
    if is_folder:
        tree.folders.add(name)
        return
    if name in tree.files:
        raise DataError(f"{tree.path}: {name}: it is there twice.", REPACK)
    tree.files[name] = size


def check_size(archive: Path, name: str, size: int) -> None:
    """DataError where a file is too large to be an image."""
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise DataError(
            f"{archive}: {name}: {size / 1e6:,.0f} MB for one file is out of all proportion.",
            "Remove it and run the command again.",
        )
