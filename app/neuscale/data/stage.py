"""Staging: a copy of a packed data set on the node's own disk, for storage that is slow or shared.

One process of a node copies while the others wait for its lock. The copy is made under
another name, compared with the recorded checksums and renamed into place.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neuscale.cluster.cores import available_cores
from neuscale.cluster.scheduler import in_batch_job
from neuscale.data.lock import exclusive
from neuscale.data.packed import ARRAY_FILES, META_FILE, PackedDataset, packed_path
from neuscale.data.place import move_into_place, partial_folder, sweep_leftovers, writing
from neuscale.errors import DataError, UsageError, UserError
from neuscale.files import sync_file, sync_folder
from neuscale.progress import Progress, Silent

_CHUNK = 16 << 20
# Slow storage is slow to answer, not to transfer: several requests at once are what helps.
_THREADS = 8
# What is left free on the node's disk.
_MARGIN = 64 << 20

_SILENT = Silent()


def stage(data: PackedDataset, to: Path | None = None, progress: Progress = _SILENT) -> PackedDataset:
    """`data` on the disk of folder `to` (default: `$TMPDIR`), copied there unless an intact copy is there.

    Raises UsageError without a folder, DataError where the disk is too small (before
    anything is copied) or the data is damaged, UserError where the disk cannot be written.
    """
    root = to if to is not None else stage_root()
    if root is None:
        raise UsageError("there is no folder to stage to: $TMPDIR is not set.", "Give one: --to FOLDER.")
    folder = packed_path(data.meta.name, root / "neuscale")
    if folder.absolute() == data.folder.absolute():
        return data
    if (ready := _intact(folder, data, progress)) is not None:
        return ready
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"staging {data.meta.name}", progress):
        sweep_leftovers(folder)
        if (ready := _intact(folder, data, progress)) is not None:
            return ready
        partial = partial_folder(folder)
        try:
            _check_space(data, folder)
            with writing(folder):
                partial.mkdir(parents=True)
                _copy(data, partial, progress)
                shutil.copyfile(data.folder / META_FILE, partial / META_FILE)
                for file in (*ARRAY_FILES, META_FILE):
                    sync_file(partial / file)
                sync_folder(partial)
            if damaged := PackedDataset.open(partial).verify(progress):
                raise DataError(
                    f"{data.folder / damaged[0]}: its copy differs from the recorded checksum.",
                    f"Check the source: neuscale data verify {data.meta.name}",
                )
            with writing(folder):
                move_into_place(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return PackedDataset.open(folder)


def stage_root() -> Path | None:
    """The node's own folder for temporary files: `$TMPDIR`, which batch schedulers set."""
    value = os.environ.get("TMPDIR")
    return Path(value) if value else None


def staged_for_training(data: PackedDataset, where: str, progress: Progress) -> PackedDataset:
    """What training reads for `data.stage`: "none", "auto" (`$TMPDIR` under a batch scheduler) or a folder.

    A disk that cannot take the copy is a warning where it was chosen by "auto".
    """
    if where == "none" or (where == "auto" and not (in_batch_job() and stage_root())):
        return data
    if where != "auto":
        return stage(data, Path(where).expanduser(), progress)
    try:
        return stage(data, progress=progress)
    except UserError as error:
        progress.warning(f"not staged, reading {data.folder} instead: {error.problem}")
        return data


def _intact(folder: Path, data: PackedDataset, progress: Progress) -> PackedDataset | None:
    """The copy in `folder` where it is whole and of the same data."""
    if not folder.is_dir():
        return None
    try:
        copy = PackedDataset.open(folder)
    except DataError:
        return None
    if copy.meta.fingerprint != data.meta.fingerprint or copy.verify(progress):
        return None
    return copy


def _check_space(data: PackedDataset, folder: Path) -> None:
    there = folder
    while not there.is_dir():
        there = there.parent
    needed = sum((data.folder / file).stat().st_size for file in (*ARRAY_FILES, META_FILE)) + _MARGIN
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DataError(
            f"{folder}: {data.meta.name} takes {needed / 1e6:,.0f} MB with a margin,"
            f" but only {free / 1e6:,.0f} MB are free.",
            "Stage to another disk, or train from where the data is.",
        )


def _copy(data: PackedDataset, partial: Path, progress: Progress) -> None:
    """Copies the arrays in pieces, several at once."""
    pieces = []
    for file in ARRAY_FILES:
        size = (data.folder / file).stat().st_size
        with (partial / file).open("wb") as target:
            target.truncate(size)
        pieces += [(file, offset) for offset in range(0, size, _CHUNK)]
    total = sum((partial / file).stat().st_size for file in ARRAY_FILES)
    with (
        progress.task(f"staging {data.meta.name}", total, "B") as task,
        ThreadPoolExecutor(min(_THREADS, 4 * available_cores())) as pool,
    ):
        done = [pool.submit(_copy_piece, data.folder / file, partial / file, at) for file, at in pieces]
        for future in done:
            task.advance(future.result())


def _copy_piece(source: Path, target: Path, offset: int) -> int:
    with source.open("rb") as stream, target.open("r+b") as out:
        stream.seek(offset)
        piece = stream.read(_CHUNK)
        out.seek(offset)
        out.write(piece)
    return len(piece)
