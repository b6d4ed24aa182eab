"""From a name (and perhaps the user's own files) to a packed data set, once."""

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
    """The packed data set of the catalogue's `name`, made if it is not there yet.

    `name`, or `source`, may be a data set on the Hugging Face Hub, `hf:OWNER/NAME`.
    `source` is a file or folder to make it from instead of fetching it; `size` makes image
    files `size`×`size` pixels, and `options` say what else is done with them; `save_as` packs it under
    another name; `force` makes it again, and replaces the older one when the new one is whole; `skip_bad`
    leaves out image files that cannot be decoded and lists them in the record's `left_out`. Of processes
    that prepare the same data set at once, one does it while the others wait.

    Raises UsageError for arguments that do not go together, DataError for a source that is missing,
    damaged or of another layout and for a data set that is there and was made from something else,
    UserError where the disk cannot be read or written.
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
    """The data set in `folder` where it is intact and what was asked for; None where it is to be made."""
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
