"""`neuscale` and `python -m neuscale`."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line; every error ends as a message and an exit code."""
    from neuscale.cli import run
    from neuscale.distributed.rank import end_process

    end_process(run(sys.argv[1:]))


if __name__ == "__main__":
    # `python -m`, as torchrun and accelerate call it too, puts the current folder before the installed
    # packages; a yaml.py there must not take the place of one.
    if not sys.flags.safe_path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
    main()
