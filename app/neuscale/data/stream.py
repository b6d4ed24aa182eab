"""The loader for packed images that do not fit on the device: read and copied ahead of their use.

A thread gathers the next batches from the memory-mapped array into page-locked buffers and
starts their copies on a stream of its own, so that reading, copying and computing overlap.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuscale.data.augment import Rows
from neuscale.data.loader import Loader, Request, Share
from neuscale.data.packed import PackedDataset

# Batches between the reader and the model: one being used, and these ahead of it.
AHEAD = 3
# Pages that are not in memory yet are asked for in parallel; on a disk that is what helps.
READERS = 4


@dataclass
class _Slot:
    """A buffer of the ring: `host` page-locked where there is CUDA; `copied` when it may be written again."""

    host: Tensor
    copied: torch.cuda.Event | None = None


@dataclass(frozen=True)
class _Ready:
    """A batch on its way: `copied` tells when it is there; `slot` is to be given back."""

    images: Tensor
    slot: _Slot
    copied: torch.cuda.Event | None = None


class StreamLoader(Loader):
    """Reads batches ahead from the memory-mapped arrays and copies them to the device."""

    kind = "stream"

    def __init__(
        self, data: PackedDataset, split: str, image_size: int | None, device: torch.device, share: Share
    ) -> None:
        super().__init__(data.meta, data.labels(split), image_size, device, share)
        self.array = data.images(split)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def stored_size(self) -> tuple[int, int]:
        """See Loader."""
        return self.array.shape[2], self.array.shape[3]

    def _read(self, requests: Iterable[Request]) -> Iterator[Rows]:
        ready: queue.Queue[_Ready | BaseException | None] = queue.Queue()
        free: queue.Queue[_Slot | None] = queue.Queue()
        for _ in range(AHEAD + 1):
            free.put(_Slot(torch.empty(0, dtype=torch.uint8)))
        stop = threading.Event()
        reader = threading.Thread(
            target=self._work, args=(iter(requests), free, ready, stop), name="stream", daemon=True
        )
        reader.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield Rows(self._arrived(item), torch.arange(len(item.images), device=self.device))
                free.put(item.slot)
        finally:
            stop.set()
            free.put(None)
            reader.join()

    def _arrived(self, item: _Ready) -> Tensor:
        """The images, safe to use on the current stream."""
        if item.copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(item.copied)
            item.images.record_stream(current)  # its memory is not used again before this stream is done
        return item.images

    def _work(
        self,
        requests: Iterator[Request],
        free: "queue.Queue[_Slot | None]",
        ready: "queue.Queue[_Ready | BaseException | None]",
        stop: threading.Event,
    ) -> None:
        """The reader's thread: fills slots until the requests end or nobody wants them."""
        try:
            with ThreadPoolExecutor(READERS, thread_name_prefix="stream") as pool:
                for request in requests:
                    slot = free.get()
                    if slot is None or stop.is_set():
                        return
                    ready.put(self._filled(slot, request.samples, pool))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    def _filled(self, slot: _Slot, samples: NDArray[np.int64], pool: ThreadPoolExecutor) -> _Ready:
        if slot.copied is not None:
            slot.copied.synchronize()  # long done, where the model is what takes the time
        count = len(samples)
        if len(slot.host) < count:
            shape = (count, *self.array.shape[1:])
            slot.host = torch.empty(shape, dtype=torch.uint8, pin_memory=self._copies is not None)
        host = slot.host[:count]
        buffer = host.numpy()
        piece = -(-count // READERS)
        gathered = [
            pool.submit(self._gather, samples[i : i + piece], buffer[i : i + piece])
            for i in range(0, count, piece)
        ]
        for future in gathered:
            future.result()
        if self._copies is None:
            return _Ready(host if self.device.type == "cpu" else host.to(self.device), slot)
        with torch.cuda.stream(self._copies):
            images = host.to(self.device, non_blocking=True)
            slot.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.copied.record(self._copies)
        return _Ready(images, slot, slot.copied)

    def _gather(self, samples: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        # The samples are in range; any other mode than "raise" writes to `out` without a buffer between.
        np.take(self.array, samples, axis=0, out=out, mode="clip")
