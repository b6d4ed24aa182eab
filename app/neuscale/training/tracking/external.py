"""A tracker in its own thread, so that training continues if it is slow, fails or hangs."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuscale.distributed.rank import abandon_threads
from neuscale.fs import write_atomically
from neuscale.progress import Progress
from neuscale.project.targets import is_of_own_code, words_of
from neuscale.training.tracking.backend import Backend, Evaluated

# Largest number of items in the queue of a slow tracker; further items are dropped.
_MOST_WAITING = 10_000


class ExternalTracker:
    """Queue of calls to a `Backend`. No method raises or blocks, except `close` for a limited time."""

    def __init__(self, backend: Backend, settings: dict[str, Any], identity_file: Path) -> None:
        self._backend, self._identity_file = backend, identity_file
        self._items: queue.Queue[Callable[[], None] | None] = queue.Queue(_MOST_WAITING)
        self._lock = threading.Lock()
        self._untold: list[tuple[bool, str]] = []  # (is_warning, text), to be shown by the main thread
        self._error: str | None = None
        self._lost = 0
        self._closed = threading.Event()  # set when nobody waits for the rest any more
        self._thread = threading.Thread(
            target=self._work, args=(settings,), name=f"tracker {backend.name}", daemon=True
        )
        self._thread.start()

    @property
    def name(self) -> str:
        """Name of the tracker in `tracking.trackers`."""
        return self._backend.name

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Queue points of curves."""
        self._put(lambda: self._backend.numbers(values, step))

    def evaluation(self, result: Evaluated, step: int) -> None:
        """Queue an evaluation."""
        self._put(lambda: self._backend.evaluation(result, step))

    def file(self, path: Path) -> None:
        """Queue a file, which is read when its turn comes."""
        self._put(lambda: self._backend.file(path))

    def tell(self, progress: Progress) -> None:
        """Show messages since the last call: the URL of the run, or errors."""
        with self._lock:
            untold, self._untold = self._untold, []
        for is_warning, text in untold:
            (progress.warning if is_warning else progress.message)(text)

    def close(self, progress: Progress, patience: float) -> None:
        """Wait at most `patience` seconds until all items are passed on and the run is ended there."""
        waiting = self._items.qsize()
        try:
            self._items.put_nowait(None)
            self._thread.join(patience)
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._closed.set()
            self._lost += waiting
            self._fail(f"no answer in {patience:g} s")
            abandon_threads()
        elif self._lost:
            self._say(
                True, f"{self.name}: {self._lost:,} points are missing there; metrics.jsonl has all of them"
            )
        self.tell(progress)

    def record(self) -> dict[str, Any]:
        """Record for the manifest: ID in the tracker, first error, number of lost items."""
        return {"id": self._backend.identity, "error": self._error, "missing": self._lost}

    def _put(self, item: Callable[[], None]) -> None:
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self._lost += 1

    def _work(self, settings: dict[str, Any]) -> None:
        try:
            self._backend.start(settings)
            if self._backend.identity is not None:
                write_atomically(self._identity_file, f"{self._backend.identity}\n")
            where = self._backend.url
        except BaseException as error:  # SystemExit, too: it is this thread that ends
            self._fail(_words(error))
            self._drain()
            return
        if where is not None:
            self._say(False, f"{self.name}: {where}")
        while not self._closed.is_set() and (item := self._items.get()) is not None:
            try:
                item()
            except BaseException as error:
                self._lost += 1
                self._fail(_words(error))
        try:
            self._backend.finish()
        except BaseException as error:
            self._fail(_words(error))

    def _drain(self) -> None:
        while self._items.get() is not None:
            self._lost += 1

    def _fail(self, words: str) -> None:
        """Record an error; a warning is queued for the first one."""
        first, self._error = self._error is None, self._error or words
        if first:
            self._say(True, f"{self.name}: {words}; training goes on, and metrics.jsonl has everything")

    def _say(self, is_warning: bool, text: str) -> None:
        with self._lock:
            self._untold.append((is_warning, text))


def _words(error: BaseException) -> str:
    """An error in one line: with its location if it is from the user's code, else the library's message."""
    if is_of_own_code(error):
        return words_of(error)
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300].rstrip('.')}"
