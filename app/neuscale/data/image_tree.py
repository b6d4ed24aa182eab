"""A data set as a tree of image files, `<split>/<class>/<file>`, as torchvision's `ImageFolder` reads it."""

import io
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from neuscale.cluster.cores import available_cores
from neuscale.data.catalog import catalog_entry
from neuscale.data.lock import exclusive
from neuscale.data.open_source import open_source
from neuscale.data.packed import packed_path
from neuscale.data.place import move_into_place, partial_folder, sweep_leftovers, writing
from neuscale.data.prepare import packed_name
from neuscale.data.sources.decode import check_image
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.source import Source
from neuscale.errors import DataError
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent

_SILENT = Silent()


def write_image_tree(
    name: str,
    *,
    root: Path | None = None,
    source: Path | None = None,
    save_as: str | None = None,
    force: bool = False,
    progress: Progress = _SILENT,
) -> Path:
    """The folder `<root>/folders/NAME` with `train/<class>/*` and `val/<class>/*`, made if it is not there.

    Image files are copied as they are, each decoded once to see that it is whole; arrays
    become PNG files. Class folders have names whose sorted order is that of the labels.
    Raises as `prepare` does.
    """
    entry = catalog_entry(name)
    root = root if root is not None else data_root()
    folder = root / "folders" / packed_path(packed_name(entry, source, save_as), root).name
    if folder.is_dir() and not force:
        return folder
    with exclusive(folder.with_name(f".{folder.name}.lock"), f"making {folder.name}", progress):
        sweep_leftovers(folder)
        if folder.is_dir() and not force:
            return folder
        opened, _ = open_source(entry, source, None, root, progress)
        partial = partial_folder(folder)
        try:
            with writing(folder):
                partial.mkdir(parents=True)
                for split in ("train", "val"):
                    _write_split(opened, split, partial, progress)
                os.sync()  # one call for all of the files
                move_into_place(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return folder


def _write_split(source: Source, split: str, partial: Path, progress: Progress) -> None:
    names = _folder_names(source)
    for name in names:
        (partial / split / name).mkdir(parents=True)
    workers = available_cores()
    where = source.path if isinstance(source, ImageFilesSource) else partial
    with (
        progress.task(f"writing {split}", source.counts[split], "img") as task,
        ThreadPoolExecutor(workers) as pool,
    ):
        pending: deque[Future[None]] = deque()
        for path, content in _files(source, split, names):
            pending.append(pool.submit(_write, partial / split / path, content, where))
            if len(pending) > 64 * workers:
                pending.popleft().result()
                task.advance()
        for future in pending:
            future.result()
            task.advance()


def _folder_names(source: Source) -> list[str]:
    """A folder for each class; numbered where the sorted names would not be in the order of the labels."""
    names = list(source.folder_names) if isinstance(source, ImageFilesSource) else list(source.classes)
    safe = [name.replace("/", "-") for name in names]
    if safe == sorted(safe):
        return safe
    digits = len(str(len(safe) - 1))
    return [f"{label:0{digits}}-{name}" for label, name in enumerate(safe)]


def _files(source: Source, split: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """`<class>/<file>` and content of every image."""
    if isinstance(source, ImageFilesSource):
        for sample, content in source.files(split):
            yield f"{names[sample.label]}/{PurePosixPath(sample.name).name}", content
        return
    for block in source.blocks(split):
        for place, pixels, label in zip(block.places, block.images, block.labels, strict=True):
            yield f"{names[label]}/{place:05}.png", _png(pixels)


def _png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _write(path: Path, content: bytes, where: Path) -> None:
    check_image(where, f"{path.parent.name}/{path.name}", content)
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise DataError(
            f"{path.parent.name}/{path.name}: two images of this class have this name.", "Rename one of them."
        ) from None
