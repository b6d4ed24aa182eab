"""This program in another process."""

import sys


def program(*arguments: str) -> list[str]:
    """The command line of `neuscale ARGUMENTS` with this Python and these installed packages.

    -P keeps the current folder off the import path: a file there must not take the place of a package.
    """
    return [sys.executable, "-P", "-m", "neuscale", *arguments]
