"""From a name (and perhaps the user's own files) to a packed data set, once."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuscale.data.catalog import CATALOG, CatalogEntry, catalog_entry
from neuscale.data.lock import exclusive
from neuscale.data.open_source import open_source
from neuscale.data.packed import PackedDataset, PackedMeta, packed_path
from neuscale.data.packed_writer import write_packed
from neuscale.data.place import sweep_leftovers
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.errors import DataError, UsageError
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent

MAX_SIZE = 1024
MOST_REASONS = 10

_SILENT = Silent()


def prepare(
    name: str,
    *,
    root: Path | None = None,
    source: Path | None = None,
    size: int | None = None,
    save_as: str | None = None,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress = _SILENT,
) -> PackedDataset:
    """The packed data set of the catalogue's `name`, made if it is not there yet.

    `source` is a file or folder to make it from instead of fetching it; `size` makes image
    files `size`×`size` pixels; `save_as` packs it under another name; `force` makes it again,
    and replaces the older one when the new one is whole; `skip_bad` leaves out image files
    that cannot be decoded and lists them in the record's `left_out`. Of processes that prepare the same
    data set at once, one does it while the others wait.

    Raises UsageError for arguments that do not go together, DataError for a source that is
    missing, damaged or of another layout, UserError where the disk cannot be written.
    """
    entry = catalog_entry(name)
    root = root if root is not None else data_root()
    if source is not None:
        source = source.expanduser()
    check_arguments(entry, source, size)
    folder = packed_path(packed_name(entry, source, save_as), root)
    request = _Request(entry, source, size)

    if not force and (ready := _ready(folder, request, progress)) is not None:
        return ready
    lock_file = folder.with_name(f".{folder.name}.lock")
    with exclusive(lock_file, f"preparing {folder.name}", progress) as waited:
        sweep_leftovers(folder)
        if (waited or not force) and (ready := _ready(folder, request, progress)) is not None:
            return ready
        opened, provenance = open_source(entry, source, size, root, progress)
        if skip_bad and isinstance(opened, ImageFilesSource):
            provenance["left_out"] = opened.leave_out_bad(progress)
            report_left_out(provenance["left_out"], progress)
        return write_packed(
            folder,
            opened,
            title=entry.title if entry.files else folder.name,
            licence=entry.licence,
            provenance=provenance,
            progress=progress,
        )


def report_left_out(reasons: list[str], progress: Progress) -> None:
    """Warns of the images that were left out, the first few by name."""
    for reason in reasons[:MOST_REASONS]:
        progress.warning(f"left out: {reason}")
    if len(reasons) > MOST_REASONS:
        progress.warning(f"and {len(reasons) - MOST_REASONS} more left out: all are in meta.json")


@dataclass(frozen=True)
class _Request:
    entry: CatalogEntry
    source: Path | None
    size: int | None


def check_arguments(entry: CatalogEntry, source: Path | None, size: int | None) -> None:
    """Raises UsageError or DataError for arguments of `prepare` that do not go together."""
    if source is None and not entry.files:
        raise UsageError(
            f"{entry.name} needs images.", "Give '--source PATH': a folder, .zip, .tar or .tar.gz of them."
        )
    if source is not None and not source.exists():
        raise DataError(
            f"{source}: there is no such file or folder.", "Give the path of a folder or archive."
        )
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise UsageError(f"a size of {size} pixels is not possible.", f"Give '--size' from 1 to {MAX_SIZE}.")
    if size is not None and (
        entry.name == "fashion_mnist" or (entry.name in ("cifar10", "cifar100") and source is None)
    ):
        raise UsageError(
            f"'--size' is for image files; {entry.title} comes as arrays of "
            f"{entry.native_size}×{entry.native_size} pixels.",
            "Leave it away.",
        )


def packed_name(entry: CatalogEntry, source: Path | None, save_as: str | None) -> str:
    """The name that a data set of `entry` gets. Raises UsageError for another entry's name."""
    name = save_as or entry.name
    if save_as is None and entry.name == "image_folder" and source is not None:
        stem = re.sub(r"\.(zip|tar|tar\.gz|tgz)$", "", source.absolute().name, flags=re.IGNORECASE)
        name = re.sub(r"[^a-z0-9_-]+", "_", stem.lower()).strip("_-")[:64] or "images"
    if name in CATALOG and name != entry.name:
        raise UsageError(
            f"'{name}' is the name of another data set.", "Give '--save-as NAME' with a name of your own."
        )
    return name


def _ready(folder: Path, request: _Request, progress: Progress) -> PackedDataset | None:
    """The data set in `folder` where it is intact and what was asked for; None where it is to be made."""
    if not folder.is_dir():
        return None
    try:
        dataset = PackedDataset.open(folder)
    except DataError as error:
        progress.warning(f"{error.problem} It is prepared anew.")
        return None
    if difference := _difference(dataset.meta, request):
        raise DataError(
            f"{folder}: it is prepared already, but {difference}.",
            "Give '--force' to replace it, or '--save-as NAME' to have both.",
        )
    return dataset


def _difference(meta: PackedMeta, request: _Request) -> str | None:
    recorded = meta.source
    if recorded.get("catalog") != request.entry.name:
        return f"as {recorded.get('catalog')}"
    if request.source is not None and not _same_source(recorded, request.source):
        return f"from {recorded['given']}"
    if request.size is not None and request.size != recorded["size"]:
        return f"with images of {meta.width}×{meta.height} pixels"
    return None


def _same_source(recorded: dict[str, Any], source: Path) -> bool:
    """Whether a file has the recorded size, or a folder the recorded name: enough to notice a mistake."""
    if source.is_file():
        return source.stat().st_size in [file["bytes"] for file in recorded["files"]]
    same_name: bool = recorded["given"] == source.absolute().name
    return recorded["kind"] == "published" or same_name
