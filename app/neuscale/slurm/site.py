"""Settings of a cluster: slurm/site.env."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from neuscale.errors import UsageError

SITE_FILE = Path("slurm/site.env")


@dataclass(frozen=True)
class Site:
    """A cluster: `file` with its settings (None: they are in the environment), the environment they make."""

    file: Path | None
    environment: dict[str, str]

    def folder(self, variable: str, below: str) -> Path:
        """The folder that `variable` names, else `$SCRATCH/neuscale/BELOW`. UsageError without either."""
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
    """The settings in `file`, by default in slurm/site.env where that is. UsageError for one that fails."""
    if file is None:
        if not SITE_FILE.is_file():
            return Site(None, dict(os.environ))
        file = SITE_FILE
    if not file.is_file():
        raise UsageError(
            f"`site` {file}: there is no such file.", "Copy slurm/site.env.example and change it."
        )
    file = file.absolute()
    # What it prints, as `module load` may, must not get between the variables.
    read = 'set -a; source "$0" >/dev/null || exit; exec env --null'
    done = subprocess.run(["bash", "-c", read, str(file)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(f"{file}: bash cannot read it: {done.stderr.strip() or done.returncode}.")
    pairs = (line.partition("=") for line in done.stdout.split("\0") if line)
    return Site(file, {name: value for name, _, value in pairs})
