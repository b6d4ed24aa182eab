"""Staging: copy a packed data set to the node's local disk, for slow or shared storage.

One process per node copies while the others wait for its lock. The copy is written under a
temporary name, verified with the recorded checksums and renamed into place.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neuscale.data.formats.meta import CHECK_FILE, META_FILE
from neuscale.data.formats.packed import PackedDataset, array_files, packed_path
from neuscale.distributed.nodes import in_batch_job
from neuscale.errors import DataError, UsageError, UserError
from neuscale.fs import check_space, folder_lock, make_folder, replacing_folder, writing
from neuscale.hardware import available_cores
from neuscale.progress import Progress, Silent
from neuscale.untrusted import is_own_folder

_CHUNK = 16 << 20


# Slow storage has high latency rather than low bandwidth, so parallel requests help.
_THREADS = 8


# Bytes left free on the node's disk.
_MARGIN = 64 << 20


_SILENT = Silent()


def stage(data: PackedDataset, to: Path | None = None, progress: Progress = _SILENT) -> PackedDataset:
    """Return a copy of `data` in folder `to` (default: `$TMPDIR`); an intact copy there is reused.

    Raises UsageError without a folder, DataError if the disk is too small (before anything is
    copied) or the data is damaged, UserError if the disk cannot be written, or if other users could
    change the copy while it is read.
    """
    root = to if to is not None else stage_root()
    if root is None:
        raise UsageError("there is no folder to stage to: $TMPDIR is not set.", "Set `to` to a folder.")
    root = root.absolute()
    if any(packed_path(data.meta.name, root / name) == data.folder.absolute() for name in _folder_names()):
        return data
    folder = packed_path(data.meta.name, _own_folder(root))
    if (ready := _intact(folder, data, progress)) is not None:
        return ready
    with folder_lock(folder, f"staging {data.meta.name}", progress):
        if (ready := _intact(folder, data, progress)) is not None:
            return ready
        files = array_files(data.meta.splits)
        needed = sum((data.folder / file).stat().st_size for file in (*files, META_FILE))
        fix = "Stage to another disk, or train from where the data is."
        check_space(folder, needed, data.meta.name, fix, _MARGIN)
        with replacing_folder(folder) as partial:
            _copy(data, partial, progress)
            shutil.copyfile(data.folder / META_FILE, partial / META_FILE)
            if (data.folder / CHECK_FILE).is_file():
                shutil.copyfile(data.folder / CHECK_FILE, partial / CHECK_FILE)
            if damaged := PackedDataset.open(partial).verify(progress):
                raise DataError(
                    f"{data.folder / damaged[0]}: its copy differs from the recorded checksum.",
                    f"Check the source: neuscale data verify {data.meta.name}",
                )
    return PackedDataset.open(folder)


def _own_folder(root: Path) -> Path:
    """Folder in `root` for this user's copies, which nobody else can change after verification."""
    for name in _folder_names():
        folder = root / name
        with writing(folder):
            if not folder.is_symlink():
                make_folder(folder, mode=0o700)
        if is_own_folder(folder):
            return folder
    raise UserError(
        f"{folder}: is a link, or others own it or may write to it, and could change it while it is read.",
        "Stage to a folder of your own.",
    )


def _folder_names() -> list[str]:
    """Folder names to try: the usual one, then one with the user ID, for a shared temporary folder."""
    return ["neuscale", *([f"neuscale-{os.getuid()}"] if hasattr(os, "getuid") else [])]


def stage_root() -> Path | None:
    """The node's local folder for temporary files: `$TMPDIR`, which batch schedulers set; else None."""
    value = os.environ.get("TMPDIR")
    return Path(value) if value else None


def staged_for_training(data: PackedDataset, where: str, progress: Progress) -> PackedDataset:
    """The data set that training reads for `data.stage`: "none", "auto" ($TMPDIR in a batch job), a folder.

    With "auto", a failed copy is only a warning, and the original is used.
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
    """The copy in `folder` if it is intact and of the same data, else None."""
    if not folder.is_dir():
        return None
    try:
        copy = PackedDataset.open(folder)
    except DataError:
        return None
    if copy.meta != data.meta or copy.verify(progress):
        return None
    return copy


def _copy(data: PackedDataset, partial: Path, progress: Progress) -> None:
    """Copy the arrays in pieces, several in parallel."""
    pieces, files = [], array_files(data.meta.splits)
    for file in files:
        size = (data.folder / file).stat().st_size
        with (partial / file).open("wb") as target:
            target.truncate(size)
        pieces += [(file, offset) for offset in range(0, size, _CHUNK)]
    total = sum((partial / file).stat().st_size for file in files)
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
