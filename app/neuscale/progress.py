"""Progress reports of long work, independent of how they are shown.

The command line has two implementations (bars, and plain lines without a terminal);
library callers get the silent one by default.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """A piece of work in progress."""

    def advance(self, count: int = 1) -> None:
        """Report that `count` more units are done."""

    def note(self, text: str) -> None:
        """Show `text` (a loss, a file name) beside the progress."""


class Progress(Protocol):
    """The receiver of progress reports."""

    def task(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        """Context manager that yields a Task; `total` None means that it is unknown."""

    def message(self, text: str) -> None:
        """Print a line that stays on the screen."""

    def warning(self, text: str) -> None:
        """Print a warning, a line that stays on the screen."""


class _SilentTask:
    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """Progress that shows nothing."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:  # noqa: ARG002
        yield _SilentTask()

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        pass
