"""Save checkpoints in a background thread while training continues."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class BackgroundSaver:
    """Copies the state to be saved and writes it in a thread, one checkpoint at a time.

    An error in the thread is raised when the next save begins, or at the end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Any] | None = None
        self._copy: Any = None
        self.seconds = 0.0  # of the slowest save so far

    def save(self, write: Callable[[Any], object], state: Any) -> None:
        """Call `write` with a copy of `state` (nested dicts, lists and tensors) on the CPU.

        Waits first for the previous save, whose memory is reused for the copy.
        """
        self.wait()
        self._copy = _copied(state, self._copy)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().synchronize()  # copies into pinned memory are asynchronous
        self._pending = self._pool.submit(self._timed, write, self._copy)

    def wait(self) -> None:
        """Wait until everything is written. Raises the error of the writing thread, if any."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _timed(self, write: Callable[[Any], object], state: Any) -> None:
        began = time.perf_counter()
        write(state)
        self.seconds = max(self.seconds, time.perf_counter() - began)

    def close(self) -> None:
        """Wait for the last save and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()


def _copied(value: Any, memory: Any) -> Any:
    """Copy `value`, with its tensors on the CPU; reuse the tensors of `memory` that have the same form."""
    if isinstance(value, Tensor):
        fits = (
            isinstance(memory, Tensor)
            and memory.shape == value.shape
            and memory.dtype == value.dtype
            and memory.stride() == value.stride()
        )
        target = memory if fits else torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return target.copy_(value.detach(), non_blocking=value.is_cuda)
    if isinstance(value, dict):
        known = memory if isinstance(memory, dict) else {}
        return {key: _copied(item, known.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        same = isinstance(memory, list | tuple) and len(memory) == len(value)
        items = zip(value, memory if same else [None] * len(value), strict=True)
        return type(value)(_copied(item, old) for item, old in items)
    return value
