"""Lists a folder of images that stay where they are: what each is, and that each can be decoded."""

import hashlib
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from neuscale.cluster.cores import available_cores
from neuscale.data.catalog import CatalogEntry, catalog_entry
from neuscale.data.listed import LIST_FILES, ListedDataset, ListedFile, files_file, listed_path
from neuscale.data.lock import exclusive
from neuscale.data.open_source import open_source
from neuscale.data.packed import META_FILE, SPLITS, PackedMeta
from neuscale.data.packed_writer import ChannelStatistics
from neuscale.data.place import move_into_place, partial_folder, sweep_leftovers, writing
from neuscale.data.prepare import check_arguments, packed_name, report_left_out
from neuscale.data.sources.image_files import ImageFilesSource, Sample
from neuscale.errors import DataError, UsageError
from neuscale.files import sync_file, sync_folder
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent

_SILENT = Silent()


def list_images(
    name: str,
    *,
    source: Path | None,
    root: Path | None = None,
    size: int | None = None,
    save_as: str | None = None,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress = _SILENT,
) -> ListedDataset:
    """The list of the images in folder `source`, made if it is not there yet; arguments as for `prepare`.

    Every file is read and decoded once: for its checksum, for the statistics, and so that a
    damaged one is known before training. Raises as `prepare` does.
    """
    entry = catalog_entry(name)
    root = root if root is not None else data_root()
    if source is None or source.is_file():
        raise UsageError(
            "only images in a folder can be kept as files.",
            "Give one: --source FOLDER (an archive can be packed, or unpacked first).",
        )
    source = source.expanduser().absolute()
    check_arguments(entry, source, size)
    folder = listed_path(packed_name(entry, source, save_as), root)
    if not force and (ready := _ready(folder, source, size)) is not None:
        return ready
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"listing {folder.name}", progress) as waited:
        sweep_leftovers(folder)
        if (waited or not force) and (ready := _ready(folder, source, size)) is not None:
            return ready
        opened, provenance = open_source(entry, source, size, root, progress)
        if not isinstance(opened, ImageFilesSource):
            raise UsageError(f"{source}: holds arrays and no image files.", "Pack it: leave --layout away.")
        if skip_bad:
            provenance["left_out"] = opened.leave_out_bad(progress)
            report_left_out(provenance["left_out"], progress)
        provenance["folder"] = str(source)
        _write(folder, opened, entry, provenance, progress)
    return ListedDataset.open(folder)


def _ready(folder: Path, source: Path, size: int | None) -> ListedDataset | None:
    """The list in `folder` where it is of this source; None where it is to be made."""
    if not folder.is_dir():
        return None
    try:
        dataset = ListedDataset.open(folder)
    except DataError:
        return None
    recorded = dataset.meta.source
    if recorded["folder"] != str(source) or (size is not None and recorded["size"] != size):
        raise DataError(
            f"{folder}: it lists {recorded['folder']} already"
            f"{f', at {dataset.meta.height} pixels' if recorded['size'] else ''}.",
            "Give '--force' to replace it, or '--save-as NAME' to have both.",
        )
    return dataset


def _write(
    folder: Path,
    source: ImageFilesSource,
    entry: CatalogEntry,
    provenance: dict[str, Any],
    progress: Progress,
) -> None:
    partial = partial_folder(folder)
    try:
        with writing(folder):
            partial.mkdir(parents=True)
        statistics = ChannelStatistics(source.image_shape[0])
        checksums = {}
        for split in SPLITS:
            lines = [file.dumps() for file in _listed(source, split, progress)]
            with progress.task(f"decoding {split}", source.counts[split], "img") as task:
                for block in source.blocks(split):
                    if split == "train":
                        statistics.add(block.images)
                    task.advance(len(block.places))
            text = "".join(lines).encode()
            checksums[files_file(split)] = hashlib.sha256(text).hexdigest()
            with writing(folder):
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
            counts={split: source.counts[split] for split in SPLITS},
            checksums=checksums,
            source=provenance,
            licence=entry.licence,
        )
        with writing(folder):
            (partial / META_FILE).write_text(meta.dumps(), encoding="utf-8")
            for file in (*LIST_FILES, META_FILE):
                sync_file(partial / file)
            sync_folder(partial)
            move_into_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _listed(source: ImageFilesSource, split: str, progress: Progress) -> Iterator[ListedFile]:
    """The files of a split in order, hashed a few at a time."""
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
