"""A data set kept as image files: a list of the files, for images too large or too many to pack.

<root>/listed/<name>/
    meta.json          as for a packed data set; the size is the one that images are decoded to
    train_files.jsonl  [label, bytes, sha256, name] of each file, in the order of the data set
    val_files.jsonl

The files stay where they are (`source["folder"]` of the record) and are decoded when needed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from neuscale.data.formats.meta import SPLITS, PackedMeta, read_meta
from neuscale.data.formats.packed import packed_path
from neuscale.data.sources.decode import decode_image, unusable
from neuscale.data.sources.decoding import Decoding, square
from neuscale.data.sources.file_tree import MAX_MEMBER_BYTES
from neuscale.errors import DataError, is_refused, read_error
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent
from neuscale.untrusted import LINES_BYTES, open_regular, parse_json, printable, read_regular

_SILENT = Silent()


def files_file(split: str) -> str:
    """Name of the file that lists a split's images."""
    return f"{split}_files.jsonl"


LIST_FILES = tuple(files_file(split) for split in SPLITS)


def listed_path(name: str, root: Path | None = None) -> Path:
    """Folder of the list `name`. Raises UsageError if `name` is not a plain name."""
    root = root if root is not None else data_root()
    return root / "listed" / packed_path(name, root).name


@dataclass(frozen=True, slots=True)
class ListedFile:
    """An image file: `name` is its path below the data set's folder."""

    label: int
    bytes: int
    sha256: str
    name: str

    def dumps(self) -> str:
        """A line of the list."""
        return json.dumps([self.label, self.bytes, self.sha256, self.name], ensure_ascii=False) + "\n"

    @classmethod
    def loads(cls, line: str) -> "ListedFile":
        """Parse the output of `dumps`. Raises ValueError if invalid, or for a file outside the folder."""
        fields = parse_json(line)
        if not isinstance(fields, list) or list(map(type, fields)) != [int, int, str, str]:
            raise ValueError("a line is not that of an image")
        label, size, sha256, name = fields
        if PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\0" in name:
            raise ValueError(f"{printable(name)} lies outside of the folder of images")
        return cls(label, size, sha256, name)


class ListedDataset:
    """An opened data set of image files; images are read only on access. Create it with `open`."""

    def __init__(self, folder: Path, meta: PackedMeta, files: Mapping[str, list[ListedFile]]) -> None:
        self.folder = folder
        self.meta = meta
        self.files_folder = Path(meta.source["folder"])
        self.decoding = _decoding(meta)
        self._files = files

    @classmethod
    def open(cls, folder: Path) -> "ListedDataset":
        """Open the data set listed in `folder`.

        Raises DataError, naming the file and what to do, if the list is missing or damaged, or if
        the folder of images does not exist any more.
        """
        if not folder.is_dir():
            raise DataError(
                f"{folder}: '{folder.name}' is not listed.",
                f"Run '{list_command(folder.name)}'.",
            )
        meta = read_meta(folder, list_command(folder.name))
        try:
            known = isinstance(meta.source["folder"], str) and _decoding(meta) is not None
        except (KeyError, ValueError, TypeError):
            known = False
        if not known:
            raise DataError(
                f"{folder}: its record does not say where the images are, or how they are decoded.",
                f"Run '{list_command(folder.name)}'.",
            )
        files = {split: _read_list(folder, meta, split) for split in meta.splits}
        images = Path(meta.source["folder"])
        if not images.is_dir():
            raise DataError(
                f"{images}: the images of '{meta.name}' are not there any more.",
                f"Put them back, or list them where they are: {list_command(meta.name)}",
            )
        return cls(folder, meta, files)

    def files(self, split: str) -> list[ListedFile]:
        """The files of a split, in order."""
        return self._files[split]

    def labels(self, split: str) -> NDArray[np.int64]:
        """The labels of a split: int64 [N]."""
        return np.array([file.label for file in self._files[split]], dtype=np.int64)

    def class_counts(self, split: str) -> list[int]:
        """Number of images of each class in a split."""
        return self.meta.class_counts(self.labels(split))

    def image(self, split: str, sample: int) -> NDArray[np.uint8]:
        """One image of a split, decoded at the data set's size: uint8 [C, H, W]."""
        file = self._files[split][sample]
        data = read_image_file(self.files_folder, file)
        try:
            return decode_image(data, self.decoding).transpose(2, 0, 1)
        except Exception as error:
            raise unusable(self.files_folder, file.name, error) from None

    def verify(self, progress: Progress = _SILENT) -> list[str]:
        """Read every image again and return the names of those that are missing or have changed."""
        damaged = []
        total = sum(file.bytes for split in self._files for file in self._files[split])
        with progress.task(f"verifying {self.meta.name}", total, "B") as task:
            for split in self._files:
                for file in self._files[split]:
                    try:
                        data = read_image_file(self.files_folder, file)
                    except DataError:
                        data = b""
                    if hashlib.sha256(data).hexdigest() != file.sha256:
                        damaged.append(file.name)
                    task.advance(file.bytes)
        return damaged


def _decoding(meta: PackedMeta) -> Decoding:
    """The decoding options of the images. Raises KeyError, TypeError or ValueError for an invalid record."""
    return Decoding.recorded(meta.source, square(meta.height) if meta.source["size"] is not None else None)


def list_command(name: str) -> str:
    """The command that lists the data set `name` anew, for messages."""
    return (
        f"neuscale data prepare image_folder --layout files --source FOLDER --size N --save-as {name} --force"
    )


def read_image_file(folder: Path, file: ListedFile) -> bytes:
    """Content of an image file. Raises DataError if it is gone or its size has changed since the listing."""
    try:
        with open_regular(folder / file.name, limit=MAX_MEMBER_BYTES, links=True) as opened:
            data = opened.read()
    except OSError as error:
        if is_refused(error):
            raise read_error(error, folder / file.name) from None
        raise DataError(
            f"{folder / file.name}: cannot be read ({error.strerror}).",
            "Put it back, or list the data set anew.",
        ) from None
    if len(data) != file.bytes:
        raise DataError(
            f"{folder / file.name}: has {len(data):,} bytes instead of {file.bytes:,}:"
            " it was changed after it was listed.",
            "Put it back, or list the data set anew.",
        )
    return data


def _read_list(folder: Path, meta: PackedMeta, split: str) -> list[ListedFile]:
    path = folder / files_file(split)
    try:
        data = read_regular(path, LINES_BYTES)
        if hashlib.sha256(data).hexdigest() != meta.checksums[path.name]:
            raise ValueError("it was changed after it was written")
        files = [ListedFile.loads(line) for line in data.decode().split("\n") if line]
        if len(files) != meta.counts[split] or not all(0 <= file.label < meta.num_labels for file in files):
            raise ValueError("it is not of this data set's images and classes")
        return files
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, OSError) and is_refused(error):
            raise read_error(error, path) from None
        reason = "it is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise DataError(f"{path}: {reason}.", f"Run '{list_command(meta.name)}'.") from None
