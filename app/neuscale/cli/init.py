"""`neuscale init`."""

from pathlib import Path
from typing import Annotated

import typer


def init_command(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="The new folder.")],
) -> None:
    """Write a small project of your own: a model, a data source, a recipe, a test, an image."""
    from neuscale.cli.console import err, escape, out
    from neuscale.project.folder import new_project

    for name in new_project(folder):
        out.print(escape(str(folder / name)))
    err.print(f"Next: cd {escape(folder)}, make test, and neuscale train experiment=first")
