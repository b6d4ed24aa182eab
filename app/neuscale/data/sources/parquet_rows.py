"""The rows of a Parquet file, through pyarrow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from neuscale.data.sources.file_tree import GET_ANEW
from neuscale.errors import DataError, is_refused, read_error

MAGIC = b"PAR1"

_ROWS = 64  # in memory at a time: they may be images


def is_parquet(name: str) -> bool:
    """True for a name that ends as a Parquet file's."""
    return name.lower().endswith(".parquet")


def schema_of(path: Path) -> Any:
    """The `pyarrow.Schema` of a file. Raises DataError where it is damaged, or pyarrow is missing."""
    with _opened(str(path), path) as file:
        return file.schema_arrow


def read_rows(
    where: str, source: Path | BinaryIO, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a file, a dictionary each; of `columns`, where given ("image.bytes": a field of one).

    `where` names the file in messages. Raises DataError where it is damaged, or pyarrow is missing.
    """
    with _opened(where, source) as file:
        chosen = list(columns) if columns is not None else None
        for batch in file.iter_batches(batch_size=_ROWS, columns=chosen, use_threads=False):
            yield from batch.to_pylist()


@contextmanager
def _opened(where: str, source: Path | BinaryIO) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{where}: to read Parquet, a package is missing.", "Install it: pip install 'neuscale[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(source, pre_buffer=False) as file:
            yield file
    except (DataError, MemoryError):
        raise
    except Exception as error:  # nearly any, where the file is damaged
        if isinstance(error, OSError) and is_refused(error):
            raise read_error(error, where) from None
        raise DataError(f"{where}: not a whole Parquet file ({error}).", GET_ANEW) from None
