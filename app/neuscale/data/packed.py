"""The packed data set: a folder of uint8 arrays that are read by memory mapping.

<root>/packed/<name>/
    meta.json          classes, statistics, checksums, where it came from
    train_images.npy   uint8 [N, C, H, W]
    train_labels.npy   int64 [N]
    val_images.npy     the held-out split, whatever its source calls it
    val_labels.npy
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuscale.data.catalog import CATALOG
from neuscale.errors import DataError, UsageError
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent

FORMAT_VERSION = 1
SPLITS = ("train", "val")
META_FILE = "meta.json"

PackedArray = np.memmap[Any, np.dtype[Any]]

_SILENT = Silent()


def images_file(split: str) -> str:
    """The name of the file that holds a split's images."""
    return f"{split}_images.npy"


def labels_file(split: str) -> str:
    """The name of the file that holds a split's labels."""
    return f"{split}_labels.npy"


ARRAY_FILES = tuple(file(split) for split in SPLITS for file in (images_file, labels_file))


def packed_path(name: str, root: Path | None = None) -> Path:
    """Where the data set `name` is packed; UsageError where `name` is no plain name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        raise UsageError(
            f"'{name}' cannot be the name of a data set.",
            "Use small letters, digits, '_' and '-', starting with a letter or digit, 64 at most.",
        )
    return (root if root is not None else data_root()) / "packed" / name


def prepare_command(name: str, force: bool = False) -> str:
    """The command that makes the data set `name`, for messages."""
    arguments = name if name in CATALOG else f"image_folder --source PATH --save-as {name}"
    return f"neuscale data prepare {arguments}{' --force' if force else ''}"


@dataclass(frozen=True)
class PackedMeta:
    """What `meta.json` says.

    `mean` and `std` are those of the training split, per channel, for values in 0..1.
    `counts` maps split to number of images, `checksums` file name to sha256.
    `source` says where the images came from: `catalog` (the entry), `kind`, `held_out`
    (what the source calls its val split), `official` (the checksum is the published one)
    and `files` (name, bytes, sha256, md5 of each).
    """

    name: str
    title: str
    classes: list[str]
    channels: int
    height: int
    width: int
    mean: list[float]
    std: list[float]
    counts: dict[str, int]
    checksums: dict[str, str]
    source: dict[str, Any]
    licence: str
    format_version: int = FORMAT_VERSION

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def fingerprint(self) -> str:
        """sha256 over checksums and class names: equal where images, labels and order are."""
        identity = {"checksums": self.checksums, "classes": self.classes}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def shape(self, split: str) -> tuple[int, int, int, int]:
        """[N, C, H, W] of a split's images."""
        return self.counts[split], self.channels, self.height, self.width

    def dumps(self) -> str:
        """The text of `meta.json`; its last field is a checksum over all others."""
        fields = {**asdict(self), "fingerprint": self.fingerprint}
        return json.dumps({**fields, "meta_checksum": _checksum(fields)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def loads(cls, text: str) -> "PackedMeta":
        """The reverse of `dumps`; ValueError with the reason where it is not that."""
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("it holds no fields")
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"its format is {version!r}, this program reads format {FORMAT_VERSION}")
        checksum = fields.pop("meta_checksum", None)
        if checksum != _checksum(fields):
            raise ValueError("it was changed after it was written")
        fields.pop("fingerprint")
        return cls(**fields)


def _checksum(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class PackedDataset:
    """A packed data set, opened: nothing is read before it is asked for.

    Make one with `open`. The arrays are mapped from disk, read-only, and shared between processes.
    """

    def __init__(self, folder: Path, meta: PackedMeta, arrays: Mapping[str, PackedArray]) -> None:
        self.folder = self.files_folder = folder
        self.meta = meta
        self._arrays = arrays

    @classmethod
    def open(cls, folder: Path) -> "PackedDataset":
        """The data set in `folder`.

        Raises DataError, naming the file and what to do, where one is missing, unreadable,
        of another format, or not of the type, shape and size that `meta.json` gives.
        """
        name = folder.name
        if not folder.is_dir():
            raise DataError(
                f"{folder}: the data set '{name}' is not prepared.", f"Run '{prepare_command(name)}'."
            )
        meta = read_meta(folder, prepare_command(name, force=True))
        expected: dict[str, tuple[type, tuple[int, ...]]] = {}
        for split in SPLITS:
            expected[images_file(split)] = (np.uint8, meta.shape(split))
            expected[labels_file(split)] = (np.int64, meta.shape(split)[:1])
        arrays = {file: _map_array(folder / file, *form) for file, form in expected.items()}
        return cls(folder, meta, arrays)

    def images(self, split: str) -> NDArray[np.uint8]:
        """The images of "train" or "val": uint8 [N, C, H, W], mapped from disk, read-only."""
        return self._arrays[images_file(_known(split))]

    def labels(self, split: str) -> NDArray[np.int64]:
        """The labels of "train" or "val": int64 [N], in memory; DataError where one is out of range."""
        labels: NDArray[np.int64] = np.array(self._arrays[labels_file(_known(split))])
        # An index out of range would only show as a device-side assertion in the loss.
        if labels.size and not 0 <= labels.min() <= labels.max() < self.meta.num_classes:
            raise _damaged(self.folder / labels_file(split), "a label is out of range")
        return labels

    def image(self, split: str, sample: int) -> NDArray[np.uint8]:
        """One image of "train" or "val": uint8 [C, H, W]."""
        return np.array(self.images(split)[sample])

    def class_counts(self, split: str) -> list[int]:
        """How many images of "train" or "val" each class has, in the order of the classes."""
        return np.bincount(self.labels(split), minlength=self.meta.num_classes).tolist()

    def verify(self, progress: Progress = _SILENT) -> list[str]:
        """Read everything again and return the names of the files that are damaged."""
        damaged = []
        total = sum(array.offset + array.nbytes for array in self._arrays.values())
        with progress.task(f"verifying {self.meta.name}", total, "B") as task:
            for file in ARRAY_FILES:
                digest = hashlib.sha256()
                try:
                    with (self.folder / file).open("rb") as stream:
                        while chunk := stream.read(1 << 20):
                            digest.update(chunk)
                            task.advance(len(chunk))
                except OSError:
                    damaged.append(file)
                    continue
                if digest.hexdigest() != self.meta.checksums[file]:
                    damaged.append(file)
        for split in SPLITS:
            try:
                self.labels(split)
            except DataError:
                if labels_file(split) not in damaged:
                    damaged.append(labels_file(split))
        return damaged


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    return split


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: {reason}.", f"Run '{prepare_command(path.parent.name, force=True)}'.")


def read_meta(folder: Path, remedy: str) -> PackedMeta:
    """What `meta.json` in `folder` says; DataError, with the command that helps, where it cannot be read."""
    path = folder / META_FILE
    try:
        return PackedMeta.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = "it is missing"
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"cannot be read ({error})"
    raise DataError(f"{path}: {reason}.", f"Run '{remedy}'.") from None


def _map_array(path: Path, dtype: type, shape: tuple[int, ...]) -> PackedArray:
    """The array in `path`, mapped read-only, after type, shape and size have been compared."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except Exception as error:  # the header is Python text, and its parser raises nearly anything
        raise _damaged(path, f"cannot be read ({error})") from None
    if not isinstance(array, np.memmap) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {list(array.shape)}"
        raise _damaged(path, f"holds {found} instead of {np.dtype(dtype)} {list(shape)}")
    size, right = path.stat().st_size, array.offset + array.nbytes
    if size != right or not array.flags.c_contiguous:
        raise _damaged(path, f"has {size} bytes instead of {right}")
    return array
