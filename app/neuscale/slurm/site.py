"""Settings of a cluster: slurm/site.env."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from neuscale.errors import UsageError

SITE_FILE = Path("slurm/site.env")


@dataclass(frozen=True)
class Site:
    """Settings of a cluster: `file` (None: the current environment) and the resulting environment."""

    file: Path | None
    environment: dict[str, str]

    def folder(self, variable: str, below: str) -> Path:
        """Folder named by `variable`, else `$SCRATCH/neuscale/BELOW`. Raises UsageError without either."""
        if value := self.environment.get(variable):
            return Path(value).absolute()
        if scratch := self.environment.get("SCRATCH"):
            return Path(scratch).absolute() / "neuscale" / below
        where = f"in {self.file}" if self.file else f"in {SITE_FILE} (see site.env.example beside it)"
        raise UsageError(
            "$SCRATCH is not set, so there is no folder for data and runs that all nodes see.",
            f"Set it {where}: SCRATCH=FOLDER.",
        )


def read_site(file: Path | None = None) -> Site:
    """Read the settings in `file`, by default slurm/site.env if it exists. Raises UsageError on failure."""
    if file is None:
        if not SITE_FILE.is_file():
            return Site(None, dict(os.environ))
        file = SITE_FILE
    if not file.is_file():
        raise UsageError(
            f"`site` {file}: there is no such file.", "Copy slurm/site.env.example and change it."
        )
    file = file.absolute()
    # Output of the file, such as that of `module load`, must not mix with the variables.
    read = 'set -a; source "$0" >/dev/null || exit; exec env --null'
    done = subprocess.run(["bash", "-c", read, str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(f"{file}: bash cannot read it: {done.stderr.strip() or done.returncode}.")
    pairs = (line.partition("=") for line in done.stdout.split("\0") if line)
    return Site(file, {name: value for name, _, value in pairs})
