"""The terminal: results on standard output, everything else on standard error."""

import sys
from typing import Any

from rich.console import Console

out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def show_error(problem: str, fix: str) -> None:
    """What is wrong, and what to do."""
    err.print(f"[bold red]error:[/] {escape(problem)}")
    if fix:
        err.print(escape(fix))


def escape(text: Any) -> str:
    """Text in which rich finds no markup of its own."""
    from rich.markup import escape as escape_markup

    return escape_markup(str(text))


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    import json

    sys.stdout.write(json.dumps(value, indent=2) + "\n")
