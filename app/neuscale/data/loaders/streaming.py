"""Loader for packed images that do not fit into memory: it prefetches batches and copies them ahead.

For a GPU, threads gather the next batches from the memory-mapped array into pinned buffers
and copy them on a separate CUDA stream, so that reading, copying and computing overlap. On a
CPU nothing needs to be copied: a thread only touches the pages, so that they are read from
disk ahead of time.
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

# Batches that are read ahead while one is used.
AHEAD = 3


# On a CPU: number of batches whose pages are touched together, while the previous group is used.
GROUP = 8


# Reader threads, one batch each, so that pages that are not in memory yet are read in parallel.
READERS = 2


_PAGE = 4096


@dataclass
class _Buffer:
    """A host buffer of the ring, pinned with CUDA; `copied`: event after which it may be overwritten."""

    memory: Tensor
    copied: torch.cuda.Event | None = None


@dataclass(frozen=True)
class _Ready:
    """Rows of a request; `copied`: event when they are on the device; `buffer`: its buffer, for reuse."""

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
        """Rows of the memory-mapped array itself, whose pages have been touched."""
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
                        # The allocator must not reuse its memory before this stream has finished with it.
                        item.rows.images.record_stream(current)
                    yield item.rows
                    spare = item.buffer
            finally:
                pool.shutdown(cancel_futures=True)

    def _fill(self, buffer: _Buffer, request: Request) -> _Ready:
        """Read the rows of a request and start their copy to the device; runs in a reader thread."""
        if buffer.copied is not None:
            buffer.copied.synchronize()  # usually done long ago, if the model is the bottleneck
        count = len(request.samples)
        if len(buffer.memory) < count:
            shape = (count, *self._array.shape[1:])
            buffer.memory = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        host = buffer.memory[:count]
        # The samples are in range; any mode other than "raise" avoids an intermediate buffer.
        np.take(self._array, request.samples, axis=0, out=host.numpy(), mode="clip")
        if self._copies is None:
            return _Ready(Rows(host.to(self.device)), buffer)
        with torch.cuda.stream(self._copies):
            images = host.to(self.device, non_blocking=True)
            buffer.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.copied.record(self._copies)
        return _Ready(Rows(images), buffer, buffer.copied)

    def _touch(self, samples: NDArray[np.int64]) -> None:
        """Read one byte of each page of the samples."""
        image_bytes = self._array[0].nbytes
        places = np.append(np.arange(0, image_bytes, _PAGE), image_bytes - 1)
        np.take(self._array.reshape(-1), samples[:, None] * image_bytes + places, mode="clip")
