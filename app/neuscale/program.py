"""Command line to run this program in a subprocess."""

import sys


def program(*arguments: str) -> list[str]:
    """The command line of `neuscale ARGUMENTS` with this Python and these installed packages.

    -P keeps the current folder off the import path: a file there must not shadow a package.
    """
    return [sys.executable, "-P", "-m", "neuscale", *arguments]
