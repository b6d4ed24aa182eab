"""Write a data set as a tree of image files, `<split>/<class>/<file>`, for torchvision's `ImageFolder`."""

import io
import json
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from neuscale.data.catalog import catalog_entry
from neuscale.data.formats.packed import packed_path
from neuscale.data.open_source import (
    check_arguments,
    named_source,
    open_source,
    packed_name,
    report_warnings,
)
from neuscale.data.source_record import Request
from neuscale.data.sources.decode_blocks import check_image
from neuscale.data.sources.decoding import Decoding
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.listing import LISTING_FILE
from neuscale.data.sources.options import USUAL, SourceOptions
from neuscale.data.sources.source import Source
from neuscale.errors import DataError, UsageError, read_error
from neuscale.fs import folder_lock, replacing_folder
from neuscale.hardware import available_cores
from neuscale.paths import data_root
from neuscale.pictures import to_image
from neuscale.progress import Progress, Silent
from neuscale.untrusted import read_json

_SILENT = Silent()


RECORD = "source.json"


def write_image_tree(
    name: str,
    *,
    root: Path | None = None,
    source: Path | None = None,
    options: SourceOptions = USUAL,
    save_as: str | None = None,
    force: bool = False,
    progress: Progress = _SILENT,
) -> Path:
    """Write folder `<root>/folders/NAME` with `train/<class>/*` and `val/<class>/*`, unless it exists.

    Image files are copied unchanged, each decoded once to check that it is intact; arrays
    become PNG files. The sorted names of the class folders are in the order of the labels.
    Only those `options` apply that assign files to splits and classes, not those for decoding. Raises
    as `prepare` does.
    """
    name, source, usual = named_source(name, source, progress)
    save_as = save_as or usual
    entry = catalog_entry(name)
    root = root if root is not None else data_root()
    check_arguments(entry, source, options)
    request = Request(entry, source, options)
    folder = root / "folders" / packed_path(packed_name(entry, source, save_as), root).name
    if not force and _is_ready(folder, request, progress):
        return folder
    with folder_lock(folder, f"making {folder.name}", progress):
        if not force and _is_ready(folder, request, progress):
            return folder
        opened, provenance = open_source(entry, source, options, root, progress)
        if isinstance(opened, ImageFilesSource) and opened.label_sets is not None:
            raise UsageError(
                "an image of several labels has no one folder.", "Prepare it packed, or with `layout` files."
            )
        with replacing_folder(folder) as partial:
            for split in opened.counts:
                _write_split(opened, split, partial, progress)
            (partial / RECORD).write_text(json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
            if isinstance(opened, ImageFilesSource) and opened.listing is not None:
                (partial / LISTING_FILE).write_bytes(opened.listing.finished())
        report_warnings(opened, progress)
    return folder


def _is_ready(folder: Path, request: Request, progress: Progress) -> bool:
    """True if the tree exists and fits the request. Raises DataError for a tree of another source."""
    if not folder.is_dir():
        return False
    try:
        recorded = read_json(folder / RECORD)
    except FileNotFoundError:
        recorded = None
    except OSError as error:
        raise read_error(error, folder / RECORD) from None
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict):
        raise DataError(
            f"{folder}: it is there already, and has no {RECORD} that says what it was made from.",
            "Use `force` to replace it, or `save_as` to keep both.",
        )
    request.check(folder, recorded, progress)
    return True


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
    """Folder name of each class, with a number in front if sorting would change the order of the labels."""
    names = list(source.folder_names) if isinstance(source, ImageFilesSource) else list(source.classes)
    safe = [name.replace("/", "-") for name in names]
    if safe == sorted(safe):
        return safe
    digits = len(str(len(safe) - 1))
    return [f"{label:0{digits}}-{name}" for label, name in enumerate(safe)]


def _files(source: Source, split: str, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Path `<class>/<file>` and content of every image."""
    if isinstance(source, ImageFilesSource):
        short = Counter((sample.label, PurePosixPath(sample.name).name) for sample in source.samples(split))
        for sample, content in source.files(split):
            file = PurePosixPath(sample.name).name
            if short[sample.label, file] > 1:  # equal names in several folders, shards or tables
                file = sample.name.replace("/", "-")
            yield f"{names[sample.label]}/{file}", content
        return
    for block in source.blocks(split):
        for place, pixels, label in zip(block.places, block.images, block.labels, strict=True):
            yield f"{names[label]}/{place:05}.png", _png(pixels)


def _png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _write(path: Path, content: bytes, where: Path) -> None:
    check_image(where, f"{path.parent.name}/{path.name}", content, Decoding())
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise DataError(
            f"{path.parent.name}/{path.name}: two images of this class have this name.", "Rename one of them."
        ) from None
