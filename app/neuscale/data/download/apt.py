"""Download and unpack data set packages of Debian and Ubuntu without root."""

import os
import shutil
import subprocess
from pathlib import Path

# Timeout in seconds for a connection or for the next byte; apt's default is two minutes.
_STALL = "10"


_LIMIT = 900


class PackageUnavailable(Exception):
    """The package is not available; the message says why."""


def fetch_package(package: str, folder: Path, apt_options: tuple[str, ...] = ()) -> Path:
    """Download `package` and unpack it below `folder` (which must exist); return its root folder.

    The system's package lists are tried first, then fresh lists in `folder`, for containers
    without lists and machines with old ones. Raises PackageUnavailable.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise PackageUnavailable("no apt-get on this system")
    options = (
        *("-o", f"Acquire::http::Timeout={_STALL}", "-o", f"Acquire::https::Timeout={_STALL}"),
        *("-o", "Acquire::Retries=0"),
        *apt_options,
    )
    folder = folder.resolve()  # apt-get runs in another working directory
    archives = folder / "archives"
    archives.mkdir()
    try:
        _run(["apt-get", *options, "download", package], archives)
    except PackageUnavailable:
        own = (*options, *_own_lists(folder))
        update_failure = None
        try:
            _run(["apt-get", *own, "update"], archives)
        except PackageUnavailable as error:
            update_failure = error  # perhaps only for another source, such as a third party's that is gone
        try:
            _run(["apt-get", *own, "download", package], archives)
        except PackageUnavailable as error:
            raise update_failure or error from None
    downloaded = list(archives.glob("*.deb"))
    if len(downloaded) != 1:
        raise PackageUnavailable("apt-get downloaded nothing")
    root = folder / "root"
    _run(["dpkg-deb", "-x", str(downloaded[0]), str(root)], archives)
    return root


def _own_lists(folder: Path) -> tuple[str, ...]:
    """Options that make apt keep its state in `folder`, which needs no root."""
    state, cache = folder / "state", folder / "cache"
    (state / "lists" / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
    }
    return tuple(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))


def _run(command: list[str], folder: Path) -> None:
    program = command[0]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PackageUnavailable(f"{program} took more than {_LIMIT // 60} minutes") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb:"))]
        raise PackageUnavailable(
            lines[0].removeprefix("E: ") if lines else f"{program} failed ({done.returncode})"
        )
