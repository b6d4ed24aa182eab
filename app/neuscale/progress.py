"""Progress of long work, reported independently of how it is shown.

The command line has two implementations (bars, and plain lines where there is no
terminal); a library caller gets the silent one.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""

    def note(self, text: str) -> None:
        """Show `text` (a loss, a file name) beside the progress."""


class Progress(Protocol):
    """The receiver of progress reports."""

    def task(self, title: str, total: int | None, unit: str) -> AbstractContextManager[Task]:
        """A context manager that yields the Task; `total` None means unknown."""

    def message(self, text: str) -> None:
        """A line that stays."""

    def warning(self, text: str) -> None:
        """A line that stays and that the user should read."""


class _SilentTask:
    def advance(self, count: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """Reports nothing."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:  # noqa: ARG002
        yield _SilentTask()

    def message(self, text: str) -> None:
        pass

    def warning(self, text: str) -> None:
        pass
