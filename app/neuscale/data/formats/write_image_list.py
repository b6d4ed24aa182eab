"""List a folder of images that stay where they are, after checking that each can be decoded."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neuscale.data.catalog import CatalogEntry, catalog_entry
from neuscale.data.formats.image_list import ListedDataset, ListedFile, files_file, listed_path
from neuscale.data.formats.meta import META_FILE, SIZES_FILE, PackedMeta
from neuscale.data.formats.write_packed import ChannelStatistics, label_sets_of
from neuscale.data.open_source import (
    check_arguments,
    named_source,
    open_source,
    packed_name,
    report_left_out,
    report_warnings,
)
from neuscale.data.source_record import Request, report_prepared
from neuscale.data.sources.image_files import ImageFilesSource, Sample
from neuscale.data.sources.listing import LISTING_FILE
from neuscale.data.sources.options import USUAL, SourceOptions
from neuscale.errors import DataError, UsageError
from neuscale.fs import folder_lock, replacing_folder
from neuscale.hardware import available_cores
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent

_SILENT = Silent()


def list_images(
    name: str,
    *,
    source: Path | None,
    root: Path | None = None,
    size: int | None = None,
    options: SourceOptions = USUAL,
    save_as: str | None = None,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress = _SILENT,
) -> ListedDataset:
    """List the images in folder `source`, if no list exists yet, and open it; arguments as for `prepare`.

    Every file is read and decoded once: for its checksum, for the statistics, and so that a
    damaged file is found before training. Raises as `prepare` does.
    """
    name, source, usual = named_source(name, source, progress)
    save_as = save_as or usual
    entry = catalog_entry(name)
    root = root if root is not None else data_root()
    if source is None or source.is_file():
        raise UsageError(
            "only images in a folder can be kept as files.",
            "Set `source` to a folder (an archive can be packed, or unpacked first).",
        )
    source = source.absolute()
    if size is not None:
        options = replace(options, size=size)
    check_arguments(entry, source, options)
    request = Request(entry, source, options)
    folder = listed_path(packed_name(entry, source, save_as), root)
    if not force and (ready := _ready(folder, request, progress)) is not None:
        return ready
    with folder_lock(folder, f"listing {folder.name}", progress) as waited:
        if (waited or not force) and (ready := _ready(folder, request, progress)) is not None:
            return ready
        opened, provenance = open_source(entry, source, options, root, progress)
        if not isinstance(opened, ImageFilesSource):
            raise UsageError(f"{source}: holds arrays and no image files.", "Pack it, without `layout`.")
        if not opened.in_folder:
            raise UsageError(f"{source}: its images are no files of their own.", "Pack it, without `layout`.")
        if skip_bad:
            provenance["left_out"] = opened.leave_out_bad(progress)
            report_left_out(provenance["left_out"], progress)
        provenance["folder"] = str(source)
        _write(folder, opened, entry, provenance, progress)
        report_warnings(opened, progress)
    return ListedDataset.open(folder)


def _ready(folder: Path, request: Request, progress: Progress) -> ListedDataset | None:
    """The list in `folder`; None if it must be made. Raises DataError for a list of another source."""
    if not folder.is_dir():
        return None
    try:
        dataset = ListedDataset.open(folder)
    except DataError as error:
        progress.warning(f"{error.problem} It is listed anew.")
        return None
    recorded = dataset.meta.source
    if recorded["folder"] != str(request.source):
        raise DataError(
            f"{folder}: it lists {recorded['folder']} already"
            f"{f', at {dataset.meta.height} pixels' if recorded['size'] else ''}.",
            "Use `force` to replace it, or `save_as` to keep both.",
        )
    request.check(folder, recorded, progress)
    report_prepared(folder, dataset.meta.source, progress)
    return dataset


def _write(
    folder: Path,
    source: ImageFilesSource,
    entry: CatalogEntry,
    provenance: dict[str, Any],
    progress: Progress,
) -> None:
    statistics = ChannelStatistics(source.image_shape[0])
    checksums = {}
    sizes = {split: np.zeros((count, 2), dtype=np.int32) for split, count in source.counts.items()}
    with replacing_folder(folder) as partial:
        for split in source.counts:
            text = "".join(file.dumps() for file in _listed(source, split, progress)).encode()
            with progress.task(f"decoding {split}", source.counts[split], "img") as task:
                for block in source.blocks(split):
                    if split == "train":
                        statistics.add(block.images)
                    if block.sizes is not None:
                        sizes[split][block.places] = block.sizes
                    task.advance(len(block.places))
            checksums[files_file(split)] = hashlib.sha256(text).hexdigest()
            (partial / files_file(split)).write_bytes(text)
        channels, height, width = source.image_shape
        mean, std = statistics.mean_and_std()
        meta = PackedMeta(
            name=folder.name,
            title=entry.title if entry.files else folder.name,
            classes=list(source.classes),
            channels=channels,
            height=height,
            width=width,
            mean=mean,
            std=std,
            counts=dict(source.counts),
            checksums=checksums,
            source=provenance,
            licence=entry.licence,
            label_sets=label_sets_of(source),
        )
        np.savez_compressed(partial / SIZES_FILE, **sizes)  # type: ignore[arg-type]
        (partial / META_FILE).write_text(meta.dumps(), encoding="utf-8")
        if source.listing is not None:
            (partial / LISTING_FILE).write_bytes(source.listing.finished())


def _listed(source: ImageFilesSource, split: str, progress: Progress) -> Iterator[ListedFile]:
    """The files of a split in order, hashed in parallel."""
    workers = available_cores()

    def described(sample: Sample, data: bytes) -> ListedFile:
        return ListedFile(sample.label, len(data), hashlib.sha256(data).hexdigest(), sample.name)

    found: dict[str, ListedFile] = {}
    pending: deque[Future[ListedFile]] = deque()
    with (
        progress.task(f"reading {split}", source.counts[split], "img") as task,
        ThreadPoolExecutor(workers, thread_name_prefix="hash") as pool,
    ):

        def settle() -> None:
            file = pending.popleft().result()
            found[file.name] = file
            task.advance()

        for sample, data in source.files(split):
            pending.append(pool.submit(described, sample, data))
            if len(pending) > 16 * workers:
                settle()
        while pending:
            settle()
    return (found[sample.name] for sample in source.samples(split))
