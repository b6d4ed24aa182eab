"""The terminal: results on standard output, everything else on standard error."""

import math
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from neuscale.untrusted import printable


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()  # None where the shell closed it (>&-)


# Lines are not broken for what is no terminal, and tables have room: a script may search them.
out = Console(highlight=False, soft_wrap=not _is_terminal(sys.stdout))
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = 160
err = Console(stderr=True, highlight=False, soft_wrap=not _is_terminal(sys.stderr))


def show_error(problem: str, fix: str) -> None:
    """Print the problem and its fix."""
    err.print(f"[bold red]error:[/] {escape(problem, lines=True)}")
    if fix:
        err.print(escape(fix, lines=True))


def escape(text: Any, lines: bool = False) -> str:
    """Text without markup for rich and without control characters; `lines`: line breaks stay."""
    from rich.markup import escape as escape_markup

    return escape_markup(printable(text, lines))


def as_options(text: str) -> str:
    """A sentence of the library whose arguments, such as `val_share`, are written as options of a command."""
    return re.sub(r"`([a-z_]+)`", lambda found: f"--{found[1].replace('_', '-')}", text)


def beside(program: str) -> str:
    """`program` as this command was called, for example `.venv/bin/neuscale`."""
    called = Path(sys.argv[0])
    if called.name == "neuscale" and not called.is_absolute() and len(called.parts) > 1:
        return str(called.with_name(program))
    return program


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    import json

    print(json.dumps(_without_nan(value), indent=2, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """`value` with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
