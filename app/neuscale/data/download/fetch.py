"""Fetch the published files of a data set into `<root>/raw/`, verified by checksum."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neuscale.data.catalog import CatalogEntry, SourceFile
from neuscale.data.download.apt import PackageUnavailable, fetch_package
from neuscale.data.download.checksum import FileIdentity, file_identity, is_published
from neuscale.data.download.http import MirrorFailed, download
from neuscale.errors import DataError, disk_error
from neuscale.fs import sync_file, sync_folder, waiting_lock
from neuscale.progress import Progress


@dataclass(frozen=True)
class FetchedFile:
    """A published file on this machine, with verified checksum. `origin`: where it was found."""

    path: Path
    identity: FileIdentity
    origin: str


def fetch(entry: CatalogEntry, root: Path, progress: Progress) -> dict[str, FetchedFile]:
    """Fetch all files of `entry`; return them by name.

    Looks in `<root>/raw/`, in the installed package of the Linux distribution, in the
    distribution's archive, and on the mirrors, in this order. A download appears in raw/ only
    when it is complete and its checksum is right; an interrupted one is resumed. Raises DataError,
    with what was tried and what to do, if a file cannot be fetched or raw/ contains a different one.
    """
    raw = root / "raw"
    found = _from_raw(entry, raw, progress)
    if len(found) < len(entry.files):
        found = {**_from_installed_package(entry, progress), **found}
    parts = [_part(raw, file) for file in entry.files]
    leftovers = [path for path in (*parts, _partial(raw, entry)) if path.exists()]
    if len(found) == len(entry.files) and not leftovers:
        return found
    with _exclusive(entry, raw, progress) as partial:
        found = {**found, **_from_raw(entry, raw, progress)}  # another process may have fetched them
        failures: list[str] = []
        if len(found) < len(entry.files) and entry.distribution_package:
            found.update(_from_distribution(entry, raw, partial, failures, progress))
        for file in entry.files:
            if file.name not in found:
                found[file.name] = _from_mirrors(entry, file, raw, failures, progress)
        for part in parts:  # of downloads whose files came from elsewhere
            part.unlink(missing_ok=True)
    return found


def _from_raw(entry: CatalogEntry, raw: Path, progress: Progress) -> dict[str, FetchedFile]:
    found = {}
    for file in entry.files:
        path = raw / file.name
        if not path.exists():
            continue
        identity = file_identity(path, progress)
        if not is_published(identity, path, file):
            raise DataError(
                f"{path}: checksum differs (md5 {identity.md5[:8]}… instead of {file.md5[:8]}…).",
                f"Delete it and run 'neuscale data prepare {entry.name}' again.",
            )
        found[file.name] = FetchedFile(path, identity, "raw")
    return found


def _from_installed_package(entry: CatalogEntry, progress: Progress) -> dict[str, FetchedFile]:
    """Files of the installed package, used in place; a file with another checksum is ignored."""
    if entry.distribution_folder is None:
        return {}
    found = {}
    for file in entry.files:
        path = Path(entry.distribution_folder) / file.name
        if path.is_file():
            identity = file_identity(path, progress)
            if is_published(identity, path, file):
                found[file.name] = FetchedFile(
                    path, identity, f"installed package {entry.distribution_package}"
                )
    return found


def _from_distribution(
    entry: CatalogEntry, raw: Path, partial: Path, failures: list[str], progress: Progress
) -> dict[str, FetchedFile]:
    assert entry.distribution_package is not None and entry.distribution_folder is not None
    progress.message(f"fetching {entry.title} from the distribution's package {entry.distribution_package}")
    try:
        package_root = fetch_package(entry.distribution_package, partial)
    except PackageUnavailable as reason:
        failures.append(f"package {entry.distribution_package}: {reason}")
        return {}
    except OSError as error:
        raise disk_error(error, raw) from error
    found = {}
    for file in entry.files:
        unpacked = package_root / entry.distribution_folder.lstrip("/") / file.name
        if not unpacked.is_file():
            failures.append(f"package {entry.distribution_package}: {file.name} is not in it")
            continue
        identity = file_identity(unpacked, progress)
        if not is_published(identity, unpacked, file):
            failures.append(f"package {entry.distribution_package}: {file.name} has another checksum")
            continue
        path = _into_raw(unpacked, raw / file.name)
        found[file.name] = FetchedFile(path, identity, f"package {entry.distribution_package}")
    return found


def _from_mirrors(
    entry: CatalogEntry,
    file: SourceFile,
    raw: Path,
    failures: list[str],
    progress: Progress,
) -> FetchedFile:
    part = _part(raw, file)
    for url in file.urls:
        try:
            identity = download(url, file, part, progress)
        except MirrorFailed as reason:
            failures.append(f"{url}: {reason}")
        else:
            return FetchedFile(_into_raw(part, raw / file.name), identity, url)
    tried = "\n".join(f"  {failure}" for failure in failures)
    raise DataError(
        f"{entry.title}: {file.name} could not be had. Tried:\n{tried}",
        f"Put the file {file.name} (md5 {file.md5}) in {raw}/ and run the command again.",
    )


def _part(raw: Path, file: SourceFile) -> Path:
    """Path of an incomplete download, which can be resumed."""
    return raw / f".{file.name}.part"


def _partial(raw: Path, entry: CatalogEntry) -> Path:
    """Folder in which a package is unpacked; a killed process leaves it behind."""
    return raw / f".{entry.name}.partial"


def _into_raw(file: Path, path: Path) -> Path:
    try:
        sync_file(file)
        file.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    return path


@contextmanager
def _exclusive(entry: CatalogEntry, raw: Path, progress: Progress) -> Iterator[Path]:
    """Lock that lets one process at a time fetch this data set; yields an empty folder beside the target."""
    partial = _partial(raw, entry)
    with waiting_lock(raw / f".{entry.name}.lock", f"fetching {entry.title}", progress):
        try:
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
            partial.mkdir()
        except OSError as error:
            raise disk_error(error, partial) from error
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
