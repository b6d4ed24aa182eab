"""Dynamic batching: requests that wait while the model runs form its next batch.

Nobody waits for a batch to fill: an idle server answers one image at once, and a busy one
runs batches as large as its queue. (LitServe, tried first, fails the neighbours of a
request that fails, and lets its queue grow without bound.)
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor


class Busy(Exception):
    """The queue is full."""


@dataclass(frozen=True)
class _Waiting:
    image: Tensor
    answer: "asyncio.Future[Tensor]"


class Batcher:
    """Runs a model on the images of many requests, in one thread, one batch after the other."""

    def __init__(self, run: Callable[[Tensor], Tensor], max_batch: int, max_waiting: int) -> None:
        self._run, self._max_batch = run, max_batch
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue(max_waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Batcher":
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._worker is not None
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()

    @property
    def works(self) -> bool:
        """False once batches are no longer computed."""
        return self._worker is not None and not self._worker.done()

    async def logits(self, image: Tensor) -> Tensor:
        """The model's logits [classes] for uint8 [C, H, W]. Raises Busy, or what the model raised."""
        waiting = _Waiting(image, asyncio.get_running_loop().create_future())
        try:
            self._waiting.put_nowait(waiting)
        except asyncio.QueueFull:
            raise Busy from None
        return await waiting.answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._max_batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            # Requests whose time is up are not computed.
            batch = [each for each in batch if not each.answer.done()]
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(self._thread, self._rows, batch)
            except Exception as error:
                for each in batch:
                    if not each.answer.done():
                        each.answer.set_exception(error)
                continue
            for each, row in zip(batch, rows, strict=True):
                if not each.answer.done():
                    each.answer.set_result(row)

    def _rows(self, batch: list[_Waiting]) -> list[Tensor]:
        """The model's row for each image; in the model's thread."""
        try:
            rows = list(self._run(torch.stack([each.image for each in batch])))
        except StopIteration as error:  # asyncio cannot pass it on
            raise RuntimeError("the model raised StopIteration") from error
        if len(rows) != len(batch):
            raise ValueError(f"the model gave {len(rows)} rows for {len(batch)} images")
        return rows
