"""Prepare a packed data set from a catalogue name or the user's files, unless it exists already."""

from dataclasses import replace
from pathlib import Path

from neuscale.data.catalog import catalog_entry
from neuscale.data.formats.packed import PackedDataset, packed_path
from neuscale.data.formats.write_packed import write_packed
from neuscale.data.open_source import (
    check_arguments,
    named_source,
    open_source,
    packed_name,
    report_left_out,
    report_warnings,
)
from neuscale.data.source_record import Request, report_prepared
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.options import USUAL, SourceOptions
from neuscale.errors import DataError
from neuscale.fs import folder_lock
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent

_SILENT = Silent()


def prepare(
    name: str,
    *,
    root: Path | None = None,
    source: Path | None = None,
    size: int | None = None,
    options: SourceOptions = USUAL,
    save_as: str | None = None,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress = _SILENT,
) -> PackedDataset:
    """Prepare the catalogue's data set `name` in packed form, if it does not exist yet, and open it.

    `name`, or `source`, may be a data set on the Hugging Face Hub, `hf:OWNER/NAME`.
    `source`: a file or folder to read instead of fetching; `size`: resize image files to `size`×`size`
    pixels; `options`: how else they are read; `save_as`: another name for the packed data set; `force`:
    prepare it again, and replace the old one when the new one is complete; `skip_bad`: leave out image
    files that cannot be decoded, and list them in the record's `left_out`. If several processes prepare
    the same data set at once, one does it while the others wait.

    Raises UsageError for arguments that are not compatible, DataError for a source that is missing,
    damaged or of another layout and for an existing data set that was made from something else,
    UserError if the disk cannot be read or written.
    """
    name, source, usual = named_source(name, source, progress)
    entry = catalog_entry(name)
    root = root if root is not None else data_root()
    save_as = save_as or usual
    if size is not None:
        options = replace(options, size=size)
    check_arguments(entry, source, options)
    folder = packed_path(packed_name(entry, source, save_as), root)
    request = Request(entry, source, options)

    if not force and (ready := _ready(folder, request, progress)) is not None:
        return ready
    with folder_lock(folder, f"preparing {folder.name}", progress) as waited:
        if (waited or not force) and (ready := _ready(folder, request, progress)) is not None:
            return ready
        opened, provenance = open_source(entry, source, options, root, progress)
        if skip_bad and isinstance(opened, ImageFilesSource):
            provenance["left_out"] = opened.leave_out_bad(progress)
            report_left_out(provenance["left_out"], progress)
        packed = write_packed(
            folder,
            opened,
            title=entry.title if entry.files else folder.name,
            licence=entry.licence,
            provenance=provenance,
            progress=progress,
        )
        report_warnings(opened, progress)
        return packed


def _ready(folder: Path, request: Request, progress: Progress) -> PackedDataset | None:
    """The data set in `folder`; None if it must be prepared. Raises DataError if it is another one."""
    if not folder.is_dir():
        return None
    try:
        dataset = PackedDataset.open(folder)
    except DataError as error:
        progress.warning(f"{error.problem} It is prepared anew.")
        return None
    request.check(folder, dataset.meta.source, progress)
    report_prepared(folder, dataset.meta.source, progress)
    return dataset
