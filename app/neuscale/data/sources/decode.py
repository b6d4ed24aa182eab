"""Image files to RGB arrays, in a few threads: the decoders work without the interpreter's lock."""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from neuscale.data.sources.jpeg import decode_jpeg_into, jpeg_size
from neuscale.data.sources.source import Block
from neuscale.errors import DataError
from neuscale.progress import Task

# The formats that `torchvision.datasets.ImageFolder` reads; others are not even tried on an
# unknown file (Pillow would hand some of them to other programs).
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"}

MAX_PIXELS = 64_000_000  # a decompression bomb, or a picture that one does not train on


class _Named(Protocol):
    @property
    def name(self) -> str: ...


def _workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def image_size(archive: Path, name: str, data: bytes) -> tuple[int, int]:
    """Width and height that an image file's header gives; DataError where it is no image."""
    try:
        with open_image(data) as image:
            return image.size
    except MemoryError:
        raise
    except Exception as error:
        raise unusable(archive, name, error) from None


def check_image(archive: Path, name: str, data: bytes) -> None:
    """Decodes an image file; DataError where that is not possible."""
    width, height = jpeg_size(data) or (0, 0)
    if 0 < width * height <= MAX_PIXELS and decode_jpeg_into(data, np.empty((height, width, 3), np.uint8)):
        return
    try:
        decode_image(data, None)
    except MemoryError:
        raise
    except Exception as error:
        raise unusable(archive, name, error) from None


def decode_image(data: bytes, size: int | tuple[int, int] | None) -> NDArray[np.uint8]:
    """An image file's pixels, uint8 [H, W, 3].

    With `size` (a side, or width and height) the image is scaled to cover it (bicubic,
    antialiased) and the middle is kept. Grayscale becomes RGB; transparency is dropped. Raises
    nearly anything where the file is damaged.
    """
    target = (size, size) if isinstance(size, int) else size
    with open_image(data) as image:
        if target is not None:
            # JPEG can be decoded at 1/2, 1/4 or 1/8; twice the target leaves the filter enough.
            image.draft(None, (2 * target[0], 2 * target[1]))
        rgb = to_rgb(image)
    if target is not None:
        rgb = ImageOps.fit(rgb, target, method=Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def bad_images(archive: Path, files: Iterable[tuple[_Named, bytes]], task: Task) -> Iterator[tuple[str, str]]:
    """Name and reason of each image that cannot be decoded, in the order given."""

    def reason(name: str, data: bytes) -> str | None:
        try:
            check_image(archive, name, data)
        except DataError as error:
            return error.problem
        return None

    workers = _workers()
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
    size: int | None,
) -> Iterator[Block]:
    """Blocks of decoded images from (place, label, name, content), in the order given.

    `shape` is [3, H, W] of every image; one that differs, or is damaged, is a DataError that
    names it. A bounded number of files is in memory, whatever the number of images.
    """
    workers = _workers()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    pending: deque[Future[Block]] = deque()
    try:
        for batch in _batches(files, shape):
            pending.append(pool.submit(_decode_batch, archive, batch, shape, size))
            if len(pending) > workers + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_Batch = list[tuple[int, int, str, bytes]]


def _batches(files: Iterable[tuple[int, int, str, bytes]], shape: tuple[int, int, int]) -> Iterator[_Batch]:
    """Up to 128 files, but no more than about 8 MB, packed or decoded."""
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


def _decode_batch(archive: Path, batch: _Batch, shape: tuple[int, int, int], size: int | None) -> Block:
    channels, height, width = shape
    images = np.empty((len(batch), height, width, channels), dtype=np.uint8)
    for image, (_, _, name, data) in zip(images, batch, strict=True):
        if size is None and decode_jpeg_into(data, image):
            continue
        try:
            pixels = decode_image(data, size)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises nearly anything on damaged files
            raise unusable(archive, name, error) from None
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"{archive}: the images differ in size: {name} is {pixels.shape[1]}×{pixels.shape[0]}, "
                f"others are {width}×{height}.",
                "Give '--size N' to make them all N×N pixels.",
            )
        image[:] = pixels
    places, labels = ([file[column] for file in batch] for column in (0, 1))
    return Block(
        np.array(places, dtype=np.int64),
        np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
        np.array(labels, dtype=np.int64),
    )


class _Refused(Exception):
    """Why a file that may well be whole is not used."""


def open_image(data: bytes) -> Image.Image:
    """An image file, its header read; raises nearly anything where it is none."""
    if not data:
        raise _Refused("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _Refused("its number of pixels is out of all proportion") from None
    if image.width * image.height > MAX_PIXELS:
        raise _Refused(f"{image.width}×{image.height} pixels are out of all proportion")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise _Refused(f"pixels of type '{image.mode}' have no fixed range: save it with 8 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grayscale, which convert() would clip at 255
        gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    return image.convert("RGB")


def unusable(archive: Path, name: str, error: Exception) -> DataError:
    """The error for an image file that cannot be decoded, with the reason in words."""
    if isinstance(error, _Refused):
        reason = str(error)
    elif isinstance(error, UnidentifiedImageError):
        reason = "not an image, or its beginning is damaged"
    else:
        reason = f"the image is damaged or cut short ({error or type(error).__name__})"
    return DataError(f"{archive}: {name}: {reason}.", "Replace or remove it and run the command again.")
