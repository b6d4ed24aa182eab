"""`neuscale` and `python -m neuscale`."""

import sys


def main() -> None:
    """Runs the command line; every error ends as a message and an exit code."""
    from neuscale.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
