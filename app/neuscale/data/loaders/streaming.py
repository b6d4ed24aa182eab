"""The loader for packed images that do not fit: read, and copied to the device, ahead of their use.

For a GPU, threads gather the next batches from the memory-mapped array into page-locked
buffers and start their copies on a stream of its own, so that reading, copying and
computing overlap. On a CPU nothing needs to be copied: there the threads only touch the
pages, so that the disk is waited for ahead of time.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuscale.data.augment.crops import Rows
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.loaders.loader import Loader, Request
from neuscale.data.loaders.resident import as_tensor
from neuscale.distributed.rank import Rank

# Batches that are read while one is used.
AHEAD = 3


# On a CPU: batches whose pages are touched together, while as many before them are used.
GROUP = 8


# A batch each; pages that are not in memory yet are so asked for in parallel.
READERS = 2


_PAGE = 4096


@dataclass
class _Buffer:
    """Host memory of the ring, page-locked where there is CUDA; `copied`: when it may be written again."""

    memory: Tensor
    copied: torch.cuda.Event | None = None


@dataclass(frozen=True)
class _Ready:
    """A request's rows; `copied` tells when they are on the device; `buffer` is to be used again."""

    rows: Rows
    buffer: _Buffer
    copied: torch.cuda.Event | None = None


class StreamLoader(Loader):
    """Reads batches ahead from the memory-mapped arrays and copies them to the device."""

    kind = "stream"

    def __init__(
        self, data: PackedDataset, split: str, image_size: int | None, device: torch.device, rank: Rank
    ) -> None:
        super().__init__(data.meta, data.labels(split), image_size, device, rank)
        self._array = data.images(split)
        self._images = as_tensor(self._array)
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def stored_size(self) -> tuple[int, int]:
        """See Loader."""
        return self._images.shape[2], self._images.shape[3]

    def _read(self, requests: Iterable[Request]) -> Iterator[Rows]:
        return self._touched(requests) if self.device.type == "cpu" else self._copied(requests)

    def _touched(self, requests: Iterable[Request]) -> Iterator[Rows]:
        """Rows of the mapped array itself, whose pages have been touched."""
        wanted = iter(requests)

        def touched() -> list[NDArray[np.int64]]:
            group = [request.samples for request in islice(wanted, GROUP)]
            for samples in group:
                self._touch(samples)
            return group

        with ThreadPoolExecutor(1, thread_name_prefix="stream") as pool:
            coming = pool.submit(touched)
            while group := coming.result():
                coming = pool.submit(touched)
                for samples in group:
                    yield Rows(self._images, torch.from_numpy(samples))

    def _copied(self, requests: Iterable[Request]) -> Iterator[Rows]:
        """Rows copied to the device ahead of their use."""
        wanted = iter(requests)
        ready: deque[Future[_Ready]] = deque()
        with ThreadPoolExecutor(READERS, thread_name_prefix="stream") as pool:
            try:
                for request in islice(wanted, AHEAD):
                    ready.append(pool.submit(self._fill, _Buffer(torch.empty(0)), request))
                spare = _Buffer(torch.empty(0))
                while ready:
                    item = ready.popleft().result()
                    for request in islice(wanted, 1):
                        ready.append(pool.submit(self._fill, spare, request))
                    if self._copies is not None and item.copied is not None:
                        current = torch.cuda.current_stream(self.device)
                        current.wait_event(item.copied)
                        # Its memory is not given away before this stream is done with it.
                        item.rows.images.record_stream(current)
                    yield item.rows
                    spare = item.buffer
            finally:
                pool.shutdown(cancel_futures=True)

    def _fill(self, buffer: _Buffer, request: Request) -> _Ready:
        """In a reader's thread: the rows of a request, on their way to the device."""
        if buffer.copied is not None:
            buffer.copied.synchronize()  # long done, where the model is what takes the time
        count = len(request.samples)
        if len(buffer.memory) < count:
            shape = (count, *self._array.shape[1:])
            buffer.memory = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        host = buffer.memory[:count]
        # The samples are in range; any other mode than "raise" writes without a buffer between.
        np.take(self._array, request.samples, axis=0, out=host.numpy(), mode="clip")
        if self._copies is None:
            return _Ready(Rows(host.to(self.device)), buffer)
        with torch.cuda.stream(self._copies):
            images = host.to(self.device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record(self._copies)
        return _Ready(Rows(images), buffer, buffer.copied)

    def _touch(self, samples: NDArray[np.int64]) -> None:
        """Read a byte of each page of the samples."""
        image_bytes = self._array[0].nbytes
        places = np.append(np.arange(0, image_bytes, _PAGE), image_bytes - 1)
        np.take(self._array.reshape(-1), samples[:, None] * image_bytes + places, mode="clip")
