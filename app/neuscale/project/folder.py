"""The project folder with the user's presets and modules, and the template of a new one."""

import os
import re
import stat
from pathlib import Path

from neuscale.errors import UsageError
from neuscale.fs import replacing_folder
from neuscale.version import __version__

VARIABLE = "NEUSCALE_CONFIG_DIR"

USUAL = "conf"

TEMPLATE = Path(__file__).with_name("template")

# Files that have another name in the template, so that no tool acts on them there.
_NAMES = {"gitignore": ".gitignore"}


def config_folder() -> Path | None:
    """Folder of the user's presets: `$NEUSCALE_CONFIG_DIR`, else ./conf if this user or root owns it.

    Raises UsageError if the variable does not name a folder, or if every user may write to ./conf.
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
        if not folder.is_dir() or not is_own(folder):
            return None
        writable = is_writable_by_all(folder)
    except OSError:  # no permission in the current folder
        return None
    if writable:
        raise UsageError(
            f"{folder.absolute()}: every user may write to it, and presets can name code that is run.",
            f"Run 'chmod o-w {folder.absolute()}', or set `config_dir` or ${VARIABLE} to it.",
        )
    return folder.absolute()


def project_root() -> Path | None:
    """Folder that the user's modules are imported from: the parent of the presets folder."""
    folder = config_folder()
    return folder.parent if folder is not None else None


def is_own(path: Path) -> bool:
    """True if this user or root owns `path`; always True on Windows."""
    return not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)


def is_writable_by_all(path: Path) -> bool:
    """True if every user may replace files in the folder `path`; always False on Windows.

    A folder that a group may write to is accepted: with the umask 002 each user has a group of its own.
    """
    mode = path.stat().st_mode
    return hasattr(os, "getuid") and bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def new_project(folder: Path) -> list[str]:
    """Write a new project into `folder`, atomically; return the names of its files.

    Raises UsageError if something is there already, or if the name is not valid for a container image.
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
