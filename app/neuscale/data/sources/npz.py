"""Read arrays of a `.npz` file after checking their headers; Python objects (pickles) are never read."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from neuscale.data.sources.file_tree import GET_ANEW
from neuscale.errors import DataError, is_refused, read_error

_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class StoredArray:
    """An array in the file: name, shape, dtype, and offset of its values in the member."""

    key: str
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int


def is_array_file(path: Path) -> bool:
    """True for a zip that contains only .npy files."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except _ERRORS:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def stored_arrays(path: Path) -> Iterator[StoredArray]:
    """The arrays of the file, from their headers. Raises DataError for a damaged or unsupported array."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except _ERRORS as error:
        raise _damaged(path, "", error) from None
    if len({info.filename for info in members}) != len(members):
        raise DataError(f"{path}: an array is there twice.", GET_ANEW)
    for info in members:
        key = info.filename.removesuffix(".npy")
        with open_member(path, info.filename) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in _HEADERS:
                raise DataError(f"{path}: {key}: of an unknown version of .npy.", GET_ANEW)
            shape, fortran, dtype = _HEADERS[version](stream)
            start = stream.tell()
        if dtype.hasobject:
            raise DataError(
                f"{path}: {key}: holds objects of Python, which are never read.",
                "Save numbers or texts.",
            )
        if fortran and len(shape) > 1:
            raise DataError(
                f"{path}: {key}: its order is that of Fortran.", "Save it through np.ascontiguousarray."
            )
        if info.file_size != start + int(np.prod(shape, dtype=object)) * dtype.itemsize:
            raise DataError(f"{path}: {key}: has not the size that its header says.", GET_ANEW)
        yield StoredArray(key, info.filename, tuple(shape), dtype, start)


def read_array(path: Path, array: StoredArray) -> NDArray[Any]:
    """Read a whole array. Raises DataError if it is damaged."""
    with open_member(path, array.member) as stream:
        read_exactly(stream, array.start)
        data = read_exactly(stream, int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize)
        return np.frombuffer(data, array.dtype).reshape(array.shape)


@contextmanager
def open_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Context with an open member of the file. Raises DataError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            yield stream
    except _ERRORS as error:
        raise _damaged(path, name.removesuffix(".npy"), error) from None


def read_exactly(stream: IO[bytes], size: int) -> bytes:
    """Read the next `size` bytes. Raises EOFError if there are fewer."""
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("cut short")
    return data


def _damaged(path: Path, key: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and is_refused(error):
        return read_error(error, path)
    return DataError(f"{path}: {key or 'it'}: damaged ({error}).", GET_ANEW)
