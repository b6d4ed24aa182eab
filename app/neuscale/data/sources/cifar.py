"""The official CIFAR archives: pickled batches of arrays (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import hashlib
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from neuscale.data.sources.source import Block
from neuscale.errors import DataError


@dataclass(frozen=True)
class CifarLayout:
    """The members of an archive that contain each split, and the key of the labels in them."""

    name: str
    batches: Mapping[str, Sequence[str]]
    labels: str

    @property
    def fix(self) -> str:
        return f"Delete it and run 'neuscale data prepare {self.name}' again."


CIFAR10 = CifarLayout(
    "cifar10",
    {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "val": ("test_batch",)},
    "labels",
)
CIFAR100 = CifarLayout("cifar100", {"train": ("train",), "val": ("test",)}, "fine_labels")


class CifarSource:
    """`cifar-10-python.tar.gz` or the CIFAR-100 archive. The md5 is compared before anything is unpickled.

    Raises DataError if the archive is not the official one. Needs 180 MB of memory while packing: each
    pickle contains a batch of 10,000 images (CIFAR-10) and cannot be read in parts.
    """

    held_out = "test"
    image_shape = (3, 32, 32)

    def __init__(self, path: Path, classes: Sequence[str], md5: str, layout: CifarLayout = CIFAR10) -> None:
        self.classes = classes
        self._layout = layout
        self._batches = _read_batches(path, len(classes), md5, layout)
        self.counts = {
            split: sum(len(self._batches[name][1]) for name in names)
            for split, names in layout.batches.items()
        }

    def blocks(self, split: str) -> Iterator[Block]:
        """The images of a split in the order of the batches: uint8 [B, 3, 32, 32]."""
        first = 0
        for name in self._layout.batches[split]:
            images, labels = self._batches[name]
            yield Block(np.arange(first, first + len(labels)), images, labels)
            first += len(labels)


_Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _read_batches(path: Path, num_classes: int, md5: str, layout: CifarLayout) -> dict[str, _Batch]:
    wanted = {name for names in layout.batches.values() for name in names}
    batches: dict[str, _Batch] = {}
    try:
        # The file is opened only once, so that the unpickled content is the one that was compared.
        with path.open("rb") as stream:
            _compare_md5(stream, path, md5, layout.fix)
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:gz") as tar:
                for info in tar:
                    name = info.name.rpartition("/")[2]
                    member = tar.extractfile(info) if info.isreg() else None
                    if member is not None and name in wanted:
                        batches[name] = _unpickle_batch(member, f"{path}: {info.name}", num_classes, layout)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read ({error}).", layout.fix) from None
    if missing := sorted(wanted - set(batches)):
        raise DataError(f"{path}: {missing[0]} is missing.", layout.fix)
    return batches


def _compare_md5(stream: BufferedReader, path: Path, md5: str, fix: str) -> None:
    found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataError(
            f"{path}: checksum differs (md5 {found[:8]}…, the official archive has {md5[:8]}…), "
            "and only the official one is safe to unpickle.",
            fix,
        )


def _unpickle_batch(member: IO[bytes], where: str, num_classes: int, layout: CifarLayout) -> _Batch:
    try:
        # The batches were pickled by Python 2, whose strings are bytes.
        batch = _BatchUnpickler(member, encoding="latin1").load()
        images, labels = batch["data"], np.asarray(batch[layout.labels], dtype=np.int64)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
            raise ValueError("its images are not bytes")
        images = images.reshape(len(labels), *CifarSource.image_shape)
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{where}: not a batch of {layout.name} ({error}).", layout.fix) from None
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"{where}: it has no labels or one that is out of range.", layout.fix)
    return images, labels


class _BatchUnpickler(pickle.Unpickler):
    """Unpickler that builds only arrays, lists, dicts, numbers and strings."""

    # NumPy's reconstruct function moved between modules; take it from an array.
    _RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
    _ALLOWED: dict[tuple[str, str], Any] = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants to use {module}.{name}") from None
