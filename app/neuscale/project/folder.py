"""The project folder: where presets and modules of the user's own lie, and how a new one begins."""

import os
import re
from pathlib import Path

from neuscale.errors import UsageError
from neuscale.fs import replacing_folder
from neuscale.version import __version__

VARIABLE = "NEUSCALE_CONFIG_DIR"

USUAL = "conf"

TEMPLATE = Path(__file__).with_name("template")

# In the template under a name that no tool takes for its own.
_NAMES = {"gitignore": ".gitignore"}


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
    try:
        return folder.absolute() if folder.is_dir() and is_own(folder) else None
    except OSError:  # the current folder is not open to this user
        return None


def project_root() -> Path | None:
    """The folder that the user's modules are imported from: the one that holds the presets' folder."""
    folder = config_folder()
    return folder.parent if folder is not None else None


def is_own(path: Path) -> bool:
    """True where nobody but this user and root may have written `path`."""
    return not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)


def new_project(folder: Path) -> list[str]:
    """Write a project into `folder`, all of it or nothing; returns its files' names.

    Raises UsageError where something is there already, and where its name cannot be an image's.
    """
    name = folder.absolute().name
    if not re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", name):
        raise UsageError(
            f"{name}: cannot be the name of a project.", "Use small letters, digits, '-' and '_'."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already.", "Give a new name.")
    written = []
    with replacing_folder(folder.absolute()) as partial:
        for source in sorted(path for path in TEMPLATE.rglob("*") if path.is_file()):
            if "__pycache__" in source.parts:
                continue
            inside = source.relative_to(TEMPLATE)
            target = partial / inside.with_name(_NAMES.get(inside.name, inside.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8").replace("PROJECT", name).replace("VERSION", __version__)
            target.write_text(text, encoding="utf-8")
            written.append(target.relative_to(partial).as_posix())
    return written
