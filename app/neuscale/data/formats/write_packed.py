"""Write a packed data set atomically.

Everything is written to a folder beside the target (`.NAME.partial-<pid>`), synced, and
renamed into place (see `neuscale.fs`).
"""

import gzip
import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from neuscale.data.formats.meta import META_FILE, NAMES_FILE, SIZES_FILE, PackedMeta
from neuscale.data.formats.packed import PackedDataset, array_files, images_file, labels_file
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.listing import LISTING_FILE
from neuscale.data.sources.source import Source
from neuscale.errors import DataError
from neuscale.fs import check_space, replacing_folder, sync_file
from neuscale.progress import Progress


def write_packed(
    folder: Path,
    source: Source,
    *,
    title: str,
    licence: str,
    provenance: dict[str, Any],
    progress: Progress,
) -> PackedDataset:
    """Pack all of `source` into `folder` and open it; an existing data set there is replaced.

    Memory use is bounded by the source's blocks, whatever the size of the data set.
    Raises DataError if the source is damaged, UserError if the disk cannot be written.
    """
    needed = sum(source.counts.values()) * math.prod(source.image_shape)
    fix = "Free some space, or set $NEUSCALE_DATA to a folder on another disk."
    statistics = ChannelStatistics(source.image_shape[0])
    with replacing_folder(folder) as partial:
        check_space(folder.parent, needed, "the packed data set", fix)
        sizes: dict[str, NDArray[np.int32]] = {}
        for split in source.counts:
            sizes[split] = _write_split(folder.name, partial, source, split, statistics, progress)
        channels, height, width = source.image_shape
        mean, std = statistics.mean_and_std()
        meta = PackedMeta(
            name=folder.name,
            title=title,
            classes=list(source.classes),
            channels=channels,
            height=height,
            width=width,
            mean=mean,
            std=std,
            counts=dict(source.counts),
            checksums=_checksums(partial, array_files(source.counts), progress),
            source=provenance,
            licence=licence,
            label_sets=label_sets_of(source),
        )
        (partial / META_FILE).write_text(meta.dumps(), encoding="utf-8")
        if isinstance(source, ImageFilesSource):
            (partial / NAMES_FILE).write_bytes(_names(source))
            np.savez_compressed(partial / SIZES_FILE, **sizes)  # type: ignore[arg-type]
        if isinstance(source, ImageFilesSource) and source.listing is not None:
            (partial / LISTING_FILE).write_bytes(source.listing.finished())
    return PackedDataset.open(folder)


def label_sets_of(source: Source) -> list[list[int]] | None:
    """The class set of each label of a source; None if each image has one class."""
    if not isinstance(source, ImageFilesSource) or source.label_sets is None:
        return None
    return [list(labels) for labels in source.label_sets]


def _names(source: ImageFilesSource) -> bytes:
    """Content of NAMES_FILE: for each split its name and its file names, separated by NUL bytes."""
    parts = (
        "\0".join([split, *(sample.name for sample in source.samples(split))]) for split in source.counts
    )
    return gzip.compress("\0\0".join(parts).encode(), compresslevel=1, mtime=0)


class ChannelStatistics:
    """Exact mean and standard deviation per channel, since only integers are summed."""

    def __init__(self, channels: int) -> None:
        self._pixels = 0
        self._sums = [0] * channels
        self._squares = [0] * channels

    def add(self, images: NDArray[np.uint8]) -> None:
        """Add `images` (uint8 [B, C, H, W])."""
        batch, channels, height, width = images.shape
        self._pixels += batch * height * width
        # One sum per plane, in 32 bits if its squares fit: a third of the time of a sum over three axes.
        planes = images.reshape(batch * channels, height * width)
        wide = np.dtype(np.uint32 if height * width * 255**2 < 2**32 else np.uint64)
        squared = np.multiply(planes, planes, dtype=np.uint16)
        sums, squares = (
            values.sum(axis=1, dtype=wide).reshape(batch, channels).sum(axis=0, dtype=np.uint64)
            for values in (planes, squared)
        )
        for channel in range(channels):
            self._sums[channel] += int(sums[channel])
            self._squares[channel] += int(squares[channel])

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Mean and population standard deviation per channel, for values in 0..1."""
        n = self._pixels
        mean = [total / (255 * n) for total in self._sums]
        variance_n2 = [n * square - total**2 for total, square in zip(self._sums, self._squares, strict=True)]
        return mean, [math.sqrt(v) / (255 * n) for v in variance_n2]


def _write_split(
    name: str,
    partial: Path,
    source: Source,
    split: str,
    statistics: ChannelStatistics,
    progress: Progress,
) -> NDArray[np.int32]:
    """Write the images and labels of a split; return width and height of their files, [N, 2]."""
    count, shape = source.counts[split], source.image_shape
    labels = np.full(count, -1, dtype=np.int64)
    sizes = np.zeros((count, 2), dtype=np.int32)
    with (
        (partial / images_file(split)).open("wb") as stream,
        progress.task(f"packing {split}", count, "img") as task,
    ):
        start = _write_header(stream, np.uint8, (count, *shape))
        blocks = source.blocks(split)
        while (block := next(blocks, None)) is not None:
            _write_at(stream, start, block.places, block.images)
            labels[block.places] = block.labels
            if block.sizes is not None:
                sizes[block.places] = block.sizes
            if split == "train":
                statistics.add(block.images)
            task.advance(len(block.places))
        if (labels < 0).any():
            raise DataError(
                f"{name}: the source changed while it was read ({split} has fewer images now).",
                "Run the command again.",
            )
    with (partial / labels_file(split)).open("wb") as stream:
        _write_header(stream, np.int64, labels.shape)
        stream.write(labels.data)
    return sizes


def _write_header(stream: BinaryIO, dtype: type, shape: tuple[int, ...]) -> int:
    """Begin a .npy file and return the offset of its first value."""
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        stream, {"descr": description, "fortran_order": False, "shape": shape}
    )
    return stream.tell()


def _write_at(stream: BinaryIO, start: int, index: NDArray[np.int64], images: NDArray[np.uint8]) -> None:
    """Write images at their positions, neighbours in one call.

    It does not use a memory map: on a full disk a write raises an error that can be reported, but a
    memory map kills the process (SIGBUS).
    """
    order = np.argsort(index, kind="stable")
    index, images = index[order], images[order]
    image_bytes = math.prod(images.shape[1:])
    ends = [*(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
    first = 0
    for end in ends:
        stream.seek(start + int(index[first]) * image_bytes)
        stream.write(images[first:end].data)
        first = end


def _checksums(partial: Path, files: list[str], progress: Progress) -> dict[str, str]:
    """SHA-256 of every array file, read back while the files are synced in parallel."""
    checksums = {}
    total = sum((partial / file).stat().st_size for file in files)
    with progress.task("checksums", total, "B") as task, ThreadPoolExecutor(1) as pool:
        synced = [pool.submit(sync_file, partial / file) for file in files]
        for file in files:
            digest = hashlib.sha256()
            with (partial / file).open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                    task.advance(len(chunk))
            checksums[file] = digest.hexdigest()
        for done in synced:
            done.result()
    return checksums
