"""A tree of files in a folder on disk."""

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from posixpath import splitext

from neuscale.data.sources.decode import is_image
from neuscale.data.sources.file_tree import check_name, check_size, is_ignored
from neuscale.data.sources.listing import Entry, Listing
from neuscale.data.sources.tar_tree import SUFFIXES as TAR_SUFFIXES
from neuscale.errors import DataError, read_error
from neuscale.progress import Progress, Silent

_SILENT = Silent()

_STEP = 1000  # files between two progress updates


class FolderTree:
    """A folder on disk as a FileTree. Symbolic links are followed."""

    def __init__(self, path: Path, progress: Progress = _SILENT) -> None:
        self.path = path
        self.files: dict[str, int] = {}
        self.folders: set[str] = set()
        self.listing_bytes = 0
        self.warnings: list[str] = []
        self.listing = Listing()
        for entry in counted(walk_folder(path, self.folders), progress):
            self.files[entry.name] = entry.size
            if is_data(entry.name):
                self.listing.add(entry)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See FileTree."""
        for name in names:
            path = self.path / name
            check_size(self.path, name, self.files[name])
            try:
                yield name, path.read_bytes()
            except OSError as error:
                raise read_error(error, path) from None

    def check_rest(self, used: Collection[str]) -> None:
        """Do nothing: files on disk cannot be checked without reading their content."""


def walk_folder(path: Path, folders: set[str] | None = None) -> Iterator[Entry]:
    """Yield the files below a folder, sorted by name; subfolders are added to `folders`.

    Raises DataError for entries that cannot be listed: a broken link, a pipe, an invalid or too long name.
    """
    try:
        yield from _walk(path, path, "", frozenset(), folders if folders is not None else set())
    except OSError as error:
        raise read_error(error, error.filename or path) from None


def counted(entries: Iterator[Entry], progress: Progress) -> Iterator[Entry]:
    """Yield the entries, with progress: on a network disk a million files take minutes."""
    task = None
    with ExitStack() as stack:
        for number, entry in enumerate(entries, start=1):
            yield entry
            if number % _STEP == 0:
                task = task or stack.enter_context(progress.task("listing files", None, "files"))
                task.advance(_STEP)


def _walk(
    top: Path, folder: Path, prefix: str, above: frozenset[tuple[int, int]], folders: set[str]
) -> Iterator[Entry]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder above itself
        return
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if is_ignored(entry.name):
            continue
        name = prefix + entry.name
        check_name(top, name)
        if entry.is_dir():
            folders.add(name)
            yield from _walk(top, folder / entry.name, f"{name}/", above | {here}, folders)
        elif entry.is_file():
            status = entry.stat()
            yield Entry(name, status.st_size, status.st_mtime_ns)
        else:
            what = "is a link to a file that is not there" if entry.is_symlink() else "is no file"
            raise DataError(f"{entry.path}: {what}.", "Remove or restore it and run the command again.")


def is_data(name: str) -> bool:
    """True for a file that a data set may be made from: an image, a table or a tar archive."""
    return is_image(name) or splitext(name)[1].lower() in _TABLES or name.lower().endswith(TAR_SUFFIXES)


_TABLES = frozenset([".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"])
