"""Fashion-MNIST's files: gzipped IDX arrays (http://yann.lecun.com/exdb/mnist/, "file format")."""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from neuscale.data.sources.source import Block
from neuscale.errors import DataError

_UNSIGNED_BYTE = 0x08
_BLOCK = 2048
_MAX_ITEMS, _MAX_ITEM_BYTES = 100_000_000, 1 << 20
_FIX = "Delete it and run 'neuscale data prepare fashion_mnist' again."

# The held-out files are called t10k; `held_out` is "test", the common name.
_PREFIXES = {"train": "train", "val": "t10k"}


class IdxSource:
    """Four IDX files, by name: {train,t10k}-images-idx3-ubyte.gz and {train,t10k}-labels-idx1-ubyte.gz.

    Raises DataError, naming the file, if a file is truncated, damaged or does not fit the others.
    """

    held_out = "test"

    def __init__(self, files: Mapping[str, Path], classes: Sequence[str]) -> None:
        self.classes = classes
        self._files = files
        self._labels = {split: self._read_labels(split) for split in _PREFIXES}
        self.counts = {split: len(labels) for split, labels in self._labels.items()}
        shapes = {split: self._image_dimensions(split)[1:] for split in _PREFIXES}
        if shapes["train"] != shapes["val"]:
            path = self._path("val", "images-idx3")
            raise DataError(f"{path}: its images have another size than the training images.", _FIX)
        height, width = shapes["train"]
        self.image_shape = (1, height, width)

    def blocks(self, split: str) -> Iterator[Block]:
        """The images of a split in file order: uint8 [B, 1, H, W]."""
        path, count, shape = self._path(split, "images-idx3"), self.counts[split], self.image_shape
        image_bytes = shape[1] * shape[2]
        with _opened(path) as stream:
            _read_header(stream, path, dimensions=3)
            for first in range(0, count, _BLOCK):
                last = min(first + _BLOCK, count)
                data = _read_exactly(stream, path, (last - first) * image_bytes)
                yield Block(
                    np.arange(first, last),
                    np.frombuffer(data, np.uint8).reshape(last - first, *shape),
                    self._labels[split][first:last],
                )
            _expect_end(stream, path)

    def _path(self, split: str, kind: str) -> Path:
        return self._files[f"{_PREFIXES[split]}-{kind}-ubyte.gz"]

    def _image_dimensions(self, split: str) -> tuple[int, ...]:
        path = self._path(split, "images-idx3")
        with _opened(path) as stream:
            dimensions = _read_header(stream, path, dimensions=3)
        if dimensions[0] != self.counts[split]:
            raise DataError(f"{path}: {dimensions[0]} images, but {self.counts[split]} labels.", _FIX)
        return dimensions

    def _read_labels(self, split: str) -> NDArray[np.int64]:
        path = self._path(split, "labels-idx1")
        with _opened(path) as stream:
            (count,) = _read_header(stream, path, dimensions=1)
            labels = np.frombuffer(_read_exactly(stream, path, count), np.uint8).astype(np.int64)
            _expect_end(stream, path)
        if count == 0 or labels.max() >= len(self.classes):
            raise DataError(f"{path}: it has no labels or one that is out of range.", _FIX)
        return labels


def _opened(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path, "rb"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).", _FIX) from None


def _read_header(stream: BinaryIO, path: Path, dimensions: int) -> tuple[int, ...]:
    """Dimensions from an IDX header: two zero bytes, type, number of dimensions, then each size."""
    zeros, kind, found = struct.unpack(">HBB", _read_exactly(stream, path, 4))
    if (zeros, kind, found) != (0, _UNSIGNED_BYTE, dimensions):
        raise DataError(f"{path}: not an IDX file of {dimensions} dimensions of bytes.", _FIX)
    sizes: tuple[int, ...] = struct.unpack(f">{dimensions}I", _read_exactly(stream, path, 4 * dimensions))
    if sizes[0] > _MAX_ITEMS or math.prod(sizes[1:]) > _MAX_ITEM_BYTES:
        raise DataError(f"{path}: its header gives a size of {sizes}, which is out of all proportion.", _FIX)
    return sizes


def _read_exactly(stream: BinaryIO, path: Path, size: int) -> bytes:
    try:
        data = stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut short ({error}).", _FIX) from None
    if len(data) != size:
        raise DataError(f"{path}: cut short.", _FIX)
    return data


def _expect_end(stream: BinaryIO, path: Path) -> None:
    """Read past the last value, which makes gzip compare its checksum, and raise DataError for more data."""
    try:
        rest = stream.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut short ({error}).", _FIX) from None
    if rest:
        raise DataError(f"{path}: longer than its header says.", _FIX)
