"""Loader for images kept as files: a torch DataLoader whose workers decode the images in order.

A worker decodes each image (with a random resized crop at full resolution); after that whole
batches are augmented on the device, as for packed images.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from neuscale.data.augment.crops import Rows, side_before_crop, window_pixels
from neuscale.data.formats.image_list import ListedDataset, ListedFile, read_image_file
from neuscale.data.loaders.loader import Loader, Request
from neuscale.data.sources.decode import (
    decode_image,
    fitted,
    open_image,
    orientation,
    to_rgb,
    unusable,
    upright,
    upright_size,
)
from neuscale.data.sources.decoding import Decoding, square
from neuscale.distributed.rank import Rank
from neuscale.errors import DataError, UserError
from neuscale.hardware import available_cores

# Batches that each worker prefetches.
PREFETCH = 2


_SHARED_MEMORY = Path("/dev/shm")


# Errors when a worker is killed while it transfers a batch.
_BROKEN_LINK = (EOFError, ConnectionError, FileNotFoundError)


_Key = tuple[int, NDArray[np.float64] | None]


class _Unreadable(NamedTuple):
    """Parts of a DataError from a worker: a DataLoader cannot transfer the exception with both parts."""

    problem: str
    fix: str


class FileLoader(Loader):
    """Decodes image files in `workers` processes; None: one per available core; 0: in this process."""

    kind = "files"

    def __init__(
        self,
        data: ListedDataset,
        split: str,
        image_size: int | None,
        device: torch.device,
        rank: Rank,
        workers: int | None = None,
    ) -> None:
        super().__init__(data.meta, data.labels(split), image_size, device, rank)
        self._own_size = image_size is None and data.meta.source["size"] is None
        decoding = replace(data.decoding, size=None if self._own_size else square(self.size))
        self._images = _Images(data.files_folder, data.files(split), decoding)
        self.workers = workers if workers is not None else available_cores()

    @property
    def stored_size(self) -> tuple[int, int]:
        """See Loader."""
        side = self.size if self._own_size else side_before_crop(self.size, self.crop)
        return side, side

    def _read(self, requests: Iterable[Request]) -> Iterator[Rows]:
        # A few batches ahead of what is needed, not the whole epoch.
        batches = map(_keys, requests)
        first = next(batches, None)
        if first is None:
            return
        if not self._own_size:
            self._images.whole = replace(self._images.decoding, size=square(self.stored_size[0]))
        if self.workers:
            self._check_shared_memory(len(first))
        loader: DataLoader[Any] = DataLoader(
            self._images,
            batch_sampler=chain([first], batches),
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=PREFETCH if self.workers else None,
            generator=torch.Generator(),  # for worker seeds, not to advance the run's generator
            worker_init_fn=_leave_signals_to_the_parent,
        )
        try:
            for item in _without_interruptions(loader):
                if isinstance(item, _Unreadable):
                    raise DataError(item.problem, item.fix)
                yield Rows(item.to(self.device, non_blocking=True))
        except (RuntimeError, *_BROKEN_LINK) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "a DataLoader worker was killed (out of memory?).",
                f"Use fewer of them: data.workers={self.workers // 2}.",
            ) from error

    def _check_shared_memory(self, batch: int) -> None:
        """Raise UserError if prefetched batches do not fit into shared memory, which would kill workers."""
        try:
            free = os.statvfs(_SHARED_MEMORY).f_bavail * os.statvfs(_SHARED_MEMORY).f_frsize
        except OSError:
            return
        each = batch * 3 * self.stored_size[0] ** 2 * (PREFETCH + 1)
        if each * self.workers > free:
            fits = free // each
            raise UserError(
                f"{_SHARED_MEMORY} has {free / 1e6:,.0f} MB free, and {self.workers} processes that decode"
                f" images need {each * self.workers / 1e6:,.0f} MB.",
                f"Use fewer: data.workers={fits}; or give the container more: --shm-size 8g.",
            )


def _without_interruptions(loader: DataLoader[Any]) -> Iterator[Any]:
    """Iterate over a DataLoader so that a dead worker raises an error only when a batch is requested.

    torch raises it from a SIGCHLD handler, which interrupts whatever runs at that moment. It also
    checks its workers while it waits for them, which is enough, so the handler is removed.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if main and loader.num_workers else None
    batches = iter(loader)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)
    return batches


class _Images(Dataset[Any]):
    """Images by (sample, window): uint8 [3, side, side], or _Unreadable for one that cannot be decoded."""

    def __init__(self, folder: Path, files: list[ListedFile], decoding: Decoding) -> None:
        self.folder, self.files, self.decoding = folder, files, decoding
        self.whole = decoding  # for images without a random crop

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: _Key) -> NDArray[np.uint8] | _Unreadable:
        sample, window = key
        file = self.files[sample]
        try:
            data = read_image_file(self.folder, file)
            pixels = decode_image(data, self.whole) if window is None else self._cut(data, window)
        except MemoryError:
            raise
        except Exception as error:
            known = error if isinstance(error, DataError) else unusable(self.folder, file.name, error)
            return _Unreadable(known.problem, known.fix)
        return pixels.transpose(2, 0, 1)

    def _cut(self, data: bytes, window: NDArray[np.float64]) -> NDArray[np.uint8]:
        from torchvision.transforms.v2 import functional as transforms  # takes a second to import

        with open_image(data) as image:
            turn = orientation(image)
            width, height = upright_size(image, turn)
            size = self.decoding.size[0] if self.decoding.size is not None else min(width, height)
            if self.decoding.fit == "crop":
                window_height, window_width = window_pixels(window, height, width)[2:]
                # A JPEG can be decoded at 1/2, 1/4 or 1/8, as long as the window is larger than the result.
                scale = max(1, min(window_height, window_width) // size)
                image.draft(None, (-(-image.width // scale), -(-image.height // scale)))
            rgb = upright(to_rgb(image, self.decoding), turn)
        if self.decoding.fit != "crop":  # the window is relative to the whole image, fitted to a square
            width = height = max(width, height)
            rgb = fitted(rgb, replace(self.decoding, size=(width, height)))
        x, y = rgb.width / width, rgb.height / height
        top, left, height, width = window_pixels(window, height, width)
        top, left, height, width = round(top * y), round(left * x), round(height * y), round(width * x)
        height, width = max(1, min(height, rgb.height - top)), max(1, min(width, rgb.width - left))
        cut = transforms.resized_crop(
            rgb, top, left, height, width, [size, size], transforms.InterpolationMode.BICUBIC
        )
        return np.asarray(cut)


def _keys(request: Request) -> list[_Key]:
    windows = request.windows
    return [
        (int(sample), windows[i] if windows is not None else None) for i, sample in enumerate(request.samples)
    ]


def _collate(images: list[NDArray[np.uint8] | _Unreadable]) -> Tensor | _Unreadable:
    for image in images:
        if isinstance(image, _Unreadable):
            return image
    return torch.from_numpy(np.stack(images))


def _leave_signals_to_the_parent(_: int) -> None:
    # A signal to all processes of a job asks the parent to save first; the workers exit with the parent.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
