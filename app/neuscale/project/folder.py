"""The project folder: where presets and modules of the user's own lie."""

import os
from pathlib import Path

from neuscale.errors import UsageError

VARIABLE = "NEUSCALE_CONFIG_DIR"

USUAL = "conf"


def config_folder() -> Path | None:
    """The folder of the user's presets: `$NEUSCALE_CONFIG_DIR`, else ./conf where it is this user's own.

    Raises UsageError where the variable names no folder.
    """
    given = os.environ.get(VARIABLE)
    if given:
        folder = Path(given).expanduser().absolute()
        if not folder.is_dir():
            raise UsageError(
                f"{folder}: there is no such folder of presets.", f"Set `config_dir` or ${VARIABLE} to one."
            )
        return folder
    folder = Path(USUAL)
    return folder.absolute() if folder.is_dir() and is_own(folder) else None


def project_root() -> Path | None:
    """The folder that the user's modules are imported from: the one that holds the presets' folder."""
    folder = config_folder()
    return folder.parent if folder is not None else None


def is_own(path: Path) -> bool:
    """True where nobody but this user and root may have written `path`."""
    return not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)
