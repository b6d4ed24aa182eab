"""Terminal output: results on stdout, everything else on stderr."""

import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from neuscale.untrusted import printable


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()  # None if the shell closed the stream (>&-)


# Without a terminal, lines are not wrapped and tables are wide, so that scripts can search the output.
out = Console(highlight=False, soft_wrap=not _is_terminal(sys.stdout))
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = 160
err = Console(stderr=True, highlight=False, soft_wrap=not _is_terminal(sys.stderr))


def show_error(problem: str, fix: str) -> None:
    """Print an error and its fix to stderr."""
    err.print(f"[bold red]error:[/] {escape(problem, lines=True)}")
    if fix:
        err.print(escape(fix, lines=True))


def escape(text: Any, lines: bool = False) -> str:
    """Escape rich markup and control characters in `text`; `lines`: keep tabs and line breaks."""
    from rich.markup import escape as escape_markup

    return escape_markup(printable(text, lines))


def as_options(text: str) -> str:
    """Replace arguments of the library in a message, such as `val_share`, by CLI options (--val-share)."""
    return re.sub(r"`([a-z_]+)`", lambda found: f"--{found[1].replace('_', '-')}", text)


def beside(program: str) -> str:
    """`program` with the relative path by which neuscale was called, for example `.venv/bin/tensorboard`."""
    called = Path(sys.argv[0])
    if called.name == "neuscale" and not called.is_absolute() and len(called.parts) > 1:
        return str(called.with_name(program))
    return program


def print_json(value: Any) -> None:
    """Print one JSON object to stdout."""
    import json

    print(json.dumps(_without_nan(value), indent=2, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """`value` with None in place of NaN and infinity, which JSON does not support."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
