"""Compare the recorded source of a prepared data set with the one requested now."""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuscale.data.catalog import CatalogEntry
from neuscale.data.download.checksum import FileIdentity, file_identity
from neuscale.data.sources.folder_tree import counted, is_data, walk_folder
from neuscale.data.sources.label_table import table_checksum
from neuscale.data.sources.listing import LISTING_FILE, changes, digest, stored_entries
from neuscale.data.sources.options import USUAL, SourceOptions
from neuscale.errors import DataError
from neuscale.progress import Progress


@dataclass(frozen=True)
class Request:
    """A requested data set: the catalogue entry, the user's files, and the options to read them."""

    entry: CatalogEntry
    source: Path | None
    options: SourceOptions = USUAL

    def check(self, folder: Path, recorded: Mapping[str, Any], progress: Progress) -> None:
        """Raise DataError if the data set in `folder`, with its record, differs from this request.

        A folder is listed again; an archive is read again if its path, size or time has changed.
        """
        if difference := self._difference(folder, recorded, progress):
            raise DataError(
                f"{folder}: it is prepared already, but {difference}.",
                "Use `force` to replace it, or `save_as` to keep both.",
            )

    def _difference(self, folder: Path, recorded: Mapping[str, Any], progress: Progress) -> str | None:
        if recorded.get("catalog") != self.entry.name:
            return f"as {recorded.get('catalog')}"
        size = self.options.size
        if size is not None and size != recorded.get("size"):
            was = recorded.get("size")
            return f"with images of {was}×{was} pixels" if was else "with images of the size they have"
        if (difference := self.options.difference(recorded)) is not None:
            return difference
        labels = self.options.labels
        if labels is not None and table_checksum(labels) != recorded.get("labels_sha256"):
            return f"with other labels in {labels}"
        if self.source is None:
            return None
        return _source_difference(folder, recorded, self.source, progress)


def report_prepared(folder: Path, recorded: Mapping[str, Any], progress: Progress) -> None:
    """Show a message that the data set in `folder` is reused, with its date and source."""
    made = recorded.get("prepared")
    if made is not None:
        progress.message(
            f"{folder.name} was prepared on {made}, from {_place_words(recorded)}; nothing was read anew"
        )


def _source_difference(
    folder: Path, recorded: Mapping[str, Any], source: Path, progress: Progress
) -> str | None:
    """Description of how `source` differs from the recorded one; None if it does not."""
    made_from = f"from {_place_words(recorded)}"
    if source.is_file():
        if recorded["kind"] == "folder":
            return made_from
        return _archive_difference(recorded, source, progress)
    if recorded["kind"] == "published":
        return None  # Fashion-MNIST's files in a folder, which have to be the published ones
    if recorded["kind"] == "folder" and recorded.get("files"):
        return None if _holds_files(source, recorded["files"]) else made_from
    if recorded["kind"] != "folder":
        return made_from
    if not isinstance(recorded.get("listing"), dict):
        return f"{made_from}, by a version that did not record its files"
    moved = "" if _same_place(recorded, source) else f"{made_from}; compared with that, "
    entries = (entry for entry in counted(walk_folder(source), progress) if is_data(entry.name))
    if digest(entries) == recorded["listing"].get("sha256"):
        return None  # also if it was moved
    try:
        now = (entry for entry in walk_folder(source) if is_data(entry.name))
        found = changes(stored_entries(folder / LISTING_FILE), now)
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, IndexError):
        return f"{made_from}, which has changed since"
    return f"{moved}{'from other files: ' if not moved else ''}{found}"


def _holds_files(folder: Path, files: list[Any]) -> bool:
    """True if the folder contains the recorded files with the recorded sizes."""
    return all(
        (path := folder / str(file.get("name"))).is_file() and path.stat().st_size == file.get("bytes")
        for file in files
        if isinstance(file, dict)
    )


def _archive_difference(recorded: Mapping[str, Any], source: Path, progress: Progress) -> str | None:
    status = source.stat()
    files = [file for file in recorded.get("files", []) if isinstance(file, dict)]
    seen = recorded.get("seen")
    if seen == [status.st_size, status.st_mtime_ns] and _same_place(recorded, source):
        return None
    if status.st_size in [file.get("bytes") for file in files]:
        identity = file_identity(source, progress)
        if identity.sha256 in [file.get("sha256") for file in files]:
            return None
        return f"from an archive of the same size and other content, {_place_words(recorded)}"
    return f"from {_place_words(recorded)}, of another size"


def _place_words(recorded: Mapping[str, Any]) -> str:
    """Path of the source files; only the name for an older record."""
    return str(recorded.get("place") or recorded.get("given"))


def _same_place(recorded: Mapping[str, Any], source: Path) -> bool:
    place = recorded.get("place")
    if not isinstance(place, str):
        return False
    try:
        return place == str(source.absolute()) or Path(place).samefile(source)
    except (OSError, ValueError):
        return False


def place_of(source: Path, identities: list[FileIdentity]) -> dict[str, Any]:
    """Record entries for the user's files: path, files, and for a single file its size and time."""
    found: dict[str, Any] = {
        "place": str(source.absolute()),
        "files": [asdict(identity) for identity in identities],
    }
    if source.is_file():
        status = source.stat()
        found["seen"] = [status.st_size, status.st_mtime_ns]
    return found
