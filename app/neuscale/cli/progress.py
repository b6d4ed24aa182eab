"""Progress display: bars on a terminal, otherwise a line from time to time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.text import Text

from neuscale.cli.console import as_options, err, escape
from neuscale.progress import Progress, Task
from neuscale.units import duration as duration
from neuscale.units import quantity as quantity

LINE_SECONDS = 10.0


def create_progress() -> Progress:
    """Create Bars if stderr is a terminal, else Lines."""
    return Bars() if err.is_terminal else Lines()


def _part(done: float, total: float | None, unit: str) -> str:
    if not total:
        return quantity(done, unit)
    begun = quantity(done, unit) if unit == "B" else f"{done:,.0f}"
    return f"{begun} of {quantity(total, unit)}"


class _Messages:
    def message(self, text: str) -> None:
        err.print(escape(text))

    def warning(self, text: str) -> None:
        err.print(f"[yellow]warning:[/] {escape(as_options(text))}")


class _Rate(ProgressColumn):
    def render(self, task: RichTask) -> Text:
        unit = task.fields["unit"]
        # A percentage instead of counts: a line of 80 characters has no room for both numbers.
        done = f"{task.percentage:3.0f}%" if task.total else quantity(task.completed, unit)
        speed = f"  {quantity(task.speed, unit)}/s" if task.speed else ""
        return Text(f"{done}{speed}", no_wrap=True)


class Bars(_Messages):
    """Progress bars that disappear when their task ends; a nested task is shown below the outer one."""

    def __init__(self) -> None:
        self._rich: RichProgress | None = None
        self._depth = 0

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        if self._rich is None:
            self._rich = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                _Rate(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=err,
                transient=True,
                speed_estimate_period=20,
            )
            self._rich.start()
        self._depth += 1
        task = self._rich.add_task(escape(title), total=total, unit=unit, note="")
        try:
            yield _Bar(self._rich, task)
        finally:
            self._rich.remove_task(task)
            self._depth -= 1
            if self._depth == 0:
                self._rich.stop()
                self._rich = None


class _Bar:
    def __init__(self, rich: RichProgress, task: TaskID) -> None:
        self._rich, self._task = rich, task

    def advance(self, count: int = 1) -> None:
        self._rich.advance(self._task, count)

    def note(self, text: str) -> None:
        self._rich.update(self._task, note=escape(text))


class Lines(_Messages):
    """A line every LINE_SECONDS, and a last one at the end of a task that took longer."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        line = _Line(title, total, unit)
        yield line
        line.end()


class _Line:
    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._note = ""
        self._done = 0
        self._began = self._shown = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self._done += count
        if time.monotonic() - self._shown >= LINE_SECONDS:
            self._show()

    def note(self, text: str) -> None:
        self._note = text

    def end(self) -> None:
        if self._shown != self._began:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        seconds = max(self._shown - self._began, 1e-9)
        parts = [_part(self._done, self._total, self._unit)]
        if self._total:
            parts[0] += f" ({self._done / self._total:.0%})"
        parts.append(f"{quantity(self._done / seconds, self._unit)}/s")
        if self._total and 0 < self._done < self._total:
            parts.append(f"{duration(seconds / self._done * (self._total - self._done))} left")
        if self._note:
            parts.append(self._note)
        err.print(escape(f"{self._title}: {', '.join(parts)}"))
