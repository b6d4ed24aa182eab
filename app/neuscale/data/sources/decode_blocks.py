"""Decode many image files to blocks of pixels in a thread pool: decoders release the GIL."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from neuscale.data.sources.decode import MAX_PIXELS, decode_image, decode_sized, unusable
from neuscale.data.sources.decoding import Decoding
from neuscale.data.sources.jpeg import decode_jpeg_into, jpeg_size
from neuscale.data.sources.source import Block
from neuscale.errors import DataError
from neuscale.hardware import available_cores
from neuscale.progress import Task


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def check_image(archive: Path, name: str, data: bytes, decoding: Decoding) -> None:
    """Decode an image file as a check. Raises DataError if that is not possible."""
    width, height = jpeg_size(data) or (0, 0)
    if 0 < width * height <= MAX_PIXELS and decode_jpeg_into(data, np.empty((height, width, 3), np.uint8)):
        return
    try:
        decode_image(data, decoding)
    except MemoryError:
        raise
    except Exception as error:
        raise unusable(archive, name, error) from None


def bad_images(
    archive: Path, files: Iterable[tuple[_Named, bytes]], decoding: Decoding, task: Task
) -> Iterator[tuple[str, str]]:
    """Yield name and reason of each image that cannot be decoded, in the given order."""

    def reason(name: str, data: bytes) -> str | None:
        try:
            check_image(archive, name, data, decoding)
        except DataError as error:
            return error.problem
        return None

    workers = available_cores()
    with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        pending: deque[tuple[str, Future[str | None]]] = deque()

        def settle() -> Iterator[tuple[str, str]]:
            name, future = pending.popleft()
            found = future.result()
            task.advance()
            if found is not None:
                yield name, found

        for sample, data in files:
            pending.append((sample.name, pool.submit(reason, sample.name, data)))
            if len(pending) > 64 * workers:
                yield from settle()
        while pending:
            yield from settle()


def decode_blocks(
    archive: Path,
    files: Iterable[tuple[int, int, str, bytes]],
    shape: tuple[int, int, int],
    decoding: Decoding,
) -> Iterator[Block]:
    """Yield blocks of decoded images from (index, label, name, content), in the given order.

    `shape` is [3, H, W] of every image; an image of another shape raises a DataError that names it. Damaged
    images are collected, and raise one DataError at the end. The number of files in memory is bounded,
    whatever the number of images.
    """
    workers = available_cores()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    pending: deque[Future[Block]] = deque()
    bad: list[DataError] = []
    try:
        for batch in _batches(files, shape):
            pending.append(pool.submit(_decode_batch, archive, batch, shape, decoding, bad))
            if len(pending) > workers + 1:
                block = pending.popleft().result()
                if not bad:
                    yield block
        while pending:
            block = pending.popleft().result()
            if not bad:
                yield block
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if bad:
        raise _all_bad(archive, bad)


_MOST_NAMED = 5


def _all_bad(archive: Path, bad: list[DataError]) -> DataError:
    """DataError for images that cannot be decoded, with their number and the first few reasons."""
    if len(bad) == 1:
        return DataError(
            bad[0].problem,
            "Replace or remove it, or leave such files out with `skip_bad`, and run the command again.",
        )
    reasons = sorted(error.problem.removeprefix(f"{archive}: ") for error in bad)
    shown = "\n".join(f"  {reason}" for reason in reasons[:_MOST_NAMED])
    more = f"\n  and {len(bad) - _MOST_NAMED:,} more" if len(bad) > _MOST_NAMED else ""
    return DataError(
        f"{archive}: {len(bad):,} images cannot be read:\n{shown}{more}",
        "Replace or remove them, or leave them out with `skip_bad`, and run the command again.",
    )


_Batch = list[tuple[int, int, str, bytes]]


def _batches(files: Iterable[tuple[int, int, str, bytes]], shape: tuple[int, int, int]) -> Iterator[_Batch]:
    """Batches of up to 128 files, with at most about 8 MB, encoded or decoded."""
    limit = 8 << 20
    most = max(1, min(128, limit // (shape[0] * shape[1] * shape[2])))
    batch: _Batch = []
    held = 0
    for file in files:
        batch.append(file)
        held += len(file[3])
        if len(batch) == most or held > limit:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _decode_batch(
    archive: Path, batch: _Batch, shape: tuple[int, int, int], decoding: Decoding, bad: list[DataError]
) -> Block:
    """Decode a batch; errors of images that cannot be decoded are added to `bad`."""
    channels, height, width = shape
    images = np.empty((len(batch), height, width, channels), dtype=np.uint8)
    sizes = np.tile(np.array([width, height], np.int32), (len(batch), 1))
    for number, (image, (_, _, name, data)) in enumerate(zip(images, batch, strict=True)):
        if decoding.size is None and decode_jpeg_into(data, image):
            continue
        try:
            pixels, sizes[number] = decode_sized(data, decoding)
        except MemoryError:
            raise
        except Exception as error:  # Pillow can raise almost any error on damaged files
            bad.append(unusable(archive, name, error))
            continue
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{archive}: the images differ in size: {name} is {pixels.shape[1]}×{pixels.shape[0]}, "
                f"others are {width}×{height}.",
                "Set `size` to scale them all to one size.",
            )
        image[:] = pixels
    places, labels = ([file[column] for file in batch] for column in (0, 1))
    return Block(
        np.array(places, dtype=np.int64),
        np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
        np.array(labels, dtype=np.int64),
        sizes,
    )
