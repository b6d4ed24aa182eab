"""Entry point of `neuscale` and `python -m neuscale`."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line and exit; every error becomes a message and an exit code."""
    from neuscale.cli import run
    from neuscale.distributed.rank import end_process

    end_process(run(sys.argv[1:]))


if __name__ == "__main__":
    # `python -m`, which torchrun and accelerate use, too, puts the current folder before the installed
    # packages on the import path; a yaml.py there must not shadow a package.
    if not sys.flags.safe_path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
    main()
