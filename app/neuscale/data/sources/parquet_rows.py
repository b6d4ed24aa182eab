"""Read the rows of a Parquet or Arrow file with pyarrow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from neuscale.data.sources.file_tree import GET_ANEW
from neuscale.errors import DataError, is_refused, read_error

MAGIC = b"PAR1"

_ARROW = ".arrow"

_ROWS = 64  # in memory at a time, since they may contain images


def is_parquet(name: str) -> bool:
    """True for the name of a Parquet file, or of an Arrow file in the cache of Hugging Face's `datasets`.

    False for cache files in which `datasets` stores results of processing.
    """
    lower = name.lower().rpartition("/")[2]
    return lower.endswith((".parquet", _ARROW)) and not lower.startswith(("cache-", "tmp"))


def schema_of(path: Path) -> Any:
    """The `pyarrow.Schema` of a file. Raises DataError if it is damaged, or pyarrow is missing."""
    with _opened(str(path), path) as file:
        return file.schema if isinstance(file, _ArrowFile) else file.schema_arrow


def read_rows(
    where: str, source: Path | BinaryIO, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as dicts; only `columns`, if given ("image.bytes": a field of a column).

    `where` names the file in messages. Raises DataError if it is damaged, or pyarrow is missing.
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
    kind = "Parquet"
    try:
        if isinstance(source, Path) and source.name.lower().endswith(_ARROW):
            kind = "Arrow"
            yield _ArrowFile(source)
            return
        with parquet.ParquetFile(source, pre_buffer=False) as file:
            yield file
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise almost any error
        if isinstance(error, OSError) and is_refused(error):
            raise read_error(error, where) from None
        raise DataError(f"{where}: not a whole {kind} file ({error}).", GET_ANEW) from None


class _ArrowFile:
    """An Arrow stream, as `datasets` writes it, or an Arrow file, with the interface of a ParquetFile."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._map = pa.memory_map(str(path))
        try:
            self._stream = pa.ipc.open_stream(self._map)
        except pa.ArrowInvalid:
            self._map.seek(0)
            found = pa.ipc.open_file(self._map)
            self._stream = (found.get_batch(i) for i in range(found.num_record_batches))
            self.schema = found.schema
        else:
            self.schema = self._stream.schema

    def iter_batches(
        self, batch_size: int, columns: Sequence[str] | None, use_threads: bool
    ) -> Iterator[Any]:
        """Yield batches of rows; for a field of a column, the whole column."""
        del use_threads
        names = set(self.schema.names)
        chosen = [name if name in names else name.rpartition(".")[0] for name in columns or ()]
        for batch in self._stream:
            batch.validate(full=True)
            some = batch.select(list(dict.fromkeys(chosen))) if columns is not None else batch
            for start in range(0, some.num_rows, batch_size):
                yield some.slice(start, batch_size)
