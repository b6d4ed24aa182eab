"""The packed data set: a folder of uint8 arrays, read through memory mapping.

<root>/packed/<name>/
    meta.json          classes, statistics, checksums, origin
    train_images.npy   uint8 [N, C, H, W]
    train_labels.npy   int64 [N], indices of classes, or of the record's class sets
    val_images.npy     the held-out split, whatever its source calls it
    val_labels.npy
    test_images.npy    if the source has a test split as well: only `eval --split test` reads it
    test_labels.npy
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuscale.data.catalog import CATALOG
from neuscale.data.formats.meta import NAMES_FILE, PackedMeta, read_meta
from neuscale.errors import DataError, UsageError, is_refused, read_error
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent
from neuscale.untrusted import read_regular

PackedArray = np.memmap[Any, np.dtype[Any]]


_SILENT = Silent()


def images_file(split: str) -> str:
    """Name of the file with a split's images."""
    return f"{split}_images.npy"


def labels_file(split: str) -> str:
    """Name of the file with a split's labels."""
    return f"{split}_labels.npy"


def array_files(splits: Iterable[str]) -> list[str]:
    """Names of the array files of these splits."""
    return [file(split) for split in splits for file in (images_file, labels_file)]


def packed_path(name: str, root: Path | None = None) -> Path:
    """Folder of the packed data set `name`. Raises UsageError if `name` is not a plain name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise UsageError(
            f"'{name}' cannot be the name of a data set.",
            "Use small letters, digits, '_' and '-', starting with a letter or digit, 64 at most.",
        )
    return (root if root is not None else data_root()) / "packed" / name


def prepare_command(name: str, force: bool = False) -> str:
    """The command that prepares the data set `name`, for messages."""
    arguments = name if name in CATALOG else f"image_folder --source PATH --save-as {name}"
    return f"neuscale data prepare {arguments}{' --force' if force else ''}"


class PackedDataset:
    """An opened packed data set; data is read only on access.

    Create it with `open`. The arrays are memory-mapped, read-only, and shared between processes.
    """

    def __init__(self, folder: Path, meta: PackedMeta, arrays: Mapping[str, PackedArray]) -> None:
        self.folder = self.files_folder = folder
        self.meta = meta
        self._arrays = arrays

    @classmethod
    def open(cls, folder: Path) -> "PackedDataset":
        """Open the data set in `folder`.

        Raises DataError, naming the file and what to do, if a file is missing, unreadable, of
        another format, or not of the type, shape and size that `meta.json` states.
        """
        name = folder.name
        if not folder.is_dir():
            raise DataError(
                f"{folder}: the data set '{name}' is not prepared.", f"Run '{prepare_command(name)}'."
            )
        meta = read_meta(folder, prepare_command(name, force=True))
        expected: dict[str, tuple[type, tuple[int, ...]]] = {}
        for split in meta.splits:
            expected[images_file(split)] = (np.uint8, meta.shape(split))
            expected[labels_file(split)] = (np.int64, meta.shape(split)[:1])
        arrays = {file: _map_array(folder / file, *form) for file, form in expected.items()}
        return cls(folder, meta, arrays)

    def images(self, split: str) -> NDArray[np.uint8]:
        """The images of a split: uint8 [N, C, H, W], memory-mapped, read-only."""
        return self._arrays[images_file(self._known(split))]

    def labels(self, split: str) -> NDArray[np.int64]:
        """The labels of a split: int64 [N], in memory. Raises DataError if one is out of range."""
        labels: NDArray[np.int64] = np.array(self._arrays[labels_file(self._known(split))])
        # A label out of range would only show up as a device-side assertion in the loss.
        if labels.size and not 0 <= labels.min() <= labels.max() < self.meta.num_labels:
            raise _damaged(self.folder / labels_file(split), "a label is out of range")
        return labels

    def names(self, split: str) -> list[str]:
        """Names of the original image files of a split; empty if not known, as for arrays."""
        try:
            content = gzip.decompress(read_regular(self.folder / NAMES_FILE))
            names = dict(part.split("\0", 1) for part in content.decode().split("\0\0"))[self._known(split)]
        except (OSError, EOFError, zlib.error, ValueError, KeyError):
            return []
        found = names.split("\0")
        return found if len(found) == self.meta.counts[split] else []

    def image(self, split: str, sample: int) -> NDArray[np.uint8]:
        """One image of a split: uint8 [C, H, W]."""
        return np.array(self.images(split)[sample])

    def class_counts(self, split: str) -> list[int]:
        """Number of images of each class in a split."""
        return self.meta.class_counts(self.labels(split))

    def verify(self, progress: Progress = _SILENT) -> list[str]:
        """Read everything again and return the names of damaged files."""
        damaged = []
        total = sum(array.offset + array.nbytes for array in self._arrays.values())
        with progress.task(f"verifying {self.meta.name}", total, "B") as task:
            for file in array_files(self.meta.splits):
                digest = hashlib.sha256()
                try:
                    with (self.folder / file).open("rb") as stream:
                        while chunk := stream.read(1 << 20):
                            digest.update(chunk)
                            task.advance(len(chunk))
                except OSError as error:
                    if is_refused(error):
                        raise read_error(error, self.folder / file) from None
                    damaged.append(file)
                    continue
                if digest.hexdigest() != self.meta.checksums.get(file):
                    damaged.append(file)
        for split in self.meta.splits:
            try:
                self.labels(split)
            except DataError:
                if labels_file(split) not in damaged:
                    damaged.append(labels_file(split))
        return damaged

    def _known(self, split: str) -> str:
        if split not in self.meta.splits:
            raise ValueError(f"split must be one of {', '.join(self.meta.splits)}, not {split!r}")
        return split


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: {reason}.", f"Run '{prepare_command(path.parent.name, force=True)}'.")


def _map_array(path: Path, dtype: type, shape: tuple[int, ...]) -> PackedArray:
    """Memory-map the array in `path` read-only, after checking its type, shape and size."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise ValueError("it is not a regular file")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except Exception as error:
        if isinstance(error, OSError) and is_refused(error):
            raise read_error(error, path) from None
        # the header is Python text, and its parser can raise almost any error
        raise _damaged(path, f"cannot be read ({error})") from None
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {list(array.shape)}"
        raise _damaged(path, f"holds {found} instead of {np.dtype(dtype)} {list(shape)}")
    size, right = path.stat().st_size, array.offset + array.nbytes
    if size != right or not array.flags.c_contiguous:
        raise _damaged(path, f"has {size} bytes instead of {right}")
    return array
