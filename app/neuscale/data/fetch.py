"""Gets the files that a data set's makers publish, each by checksum, into `<root>/raw/`."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from neuscale.data.catalog import CatalogEntry, SourceFile
from neuscale.data.checksum import FileIdentity, file_identity, is_published
from neuscale.data.distribution import PackageUnavailable, fetch_package
from neuscale.data.lock import exclusive
from neuscale.errors import DataError, disk_error
from neuscale.files import sync_file, sync_folder
from neuscale.progress import Progress, Task

_CONNECT_SECONDS, _STALL_SECONDS = 5, 30


@dataclass(frozen=True)
class FetchedFile:
    """A published file on this machine, its checksum compared. `origin` says where it was found."""

    path: Path
    identity: FileIdentity
    origin: str


def fetch(entry: CatalogEntry, root: Path, progress: Progress) -> dict[str, FetchedFile]:
    """Name to file for everything that `entry` is made from.

    Looks in `<root>/raw/`, in the distribution's package where it is installed, in the
    distribution's archive, and on the mirrors, in this order. What is downloaded appears in raw/
    only once it is whole and its checksum is right. Raises DataError, saying what was tried
    and what to do, where a file cannot be had or another one lies in its place.
    """
    raw = root / "raw"
    found = _from_raw(entry, raw, progress)
    if len(found) < len(entry.files):
        found = {**_from_installed_package(entry, progress), **found}
    if len(found) == len(entry.files):
        return found
    with _exclusive(entry, raw, progress) as partial:
        found = {**found, **_from_raw(entry, raw, progress)}  # another process may have been first
        failures: list[str] = []
        if len(found) < len(entry.files) and entry.distribution_package:
            found.update(_from_distribution(entry, raw, partial, failures, progress))
        for file in entry.files:
            if file.name not in found:
                found[file.name] = _from_mirrors(entry, file, raw, partial, failures, progress)
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
    """Files of the installed package, used where they lie; one that differs is not ours to complain about."""
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
    partial: Path,
    failures: list[str],
    progress: Progress,
) -> FetchedFile:
    for url in file.urls:
        reason = _download(url, file, partial, progress)
        if reason is None:
            path = _into_raw(partial / file.name, raw / file.name)
            return FetchedFile(path, file_identity(path, progress), url)
        failures.append(f"{url}: {reason}")
    tried = "\n".join(f"  {failure}" for failure in failures)
    raise DataError(
        f"{entry.title}: {file.name} could not be had. Tried:\n{tried}",
        f"Put the file {file.name} (md5 {file.md5}) in {raw}/ and run the command again.",
    )


def _download(url: str, file: SourceFile, partial: Path, progress: Progress) -> str | None:
    """Download to `partial`; None when it is there and right, else the reason in a few words."""
    import pooch  # brings requests, which takes longer to import than most commands run
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        with progress.task(f"downloading {file.name}", file.bytes, "B") as task:
            downloader = pooch.HTTPDownloader(
                progressbar=_PoochProgress(task),
                chunk_size=1 << 16,
                timeout=(_CONNECT_SECONDS, _STALL_SECONDS),
            )
            pooch.retrieve(
                url, known_hash=f"md5:{file.md5}", fname=file.name, path=partial, downloader=downloader
            )
    except requests.HTTPError as error:
        return f"the server answered {error.response.status_code if error.response is not None else error}"
    except requests.Timeout:
        return "no answer in time"
    except requests.exceptions.SSLError:
        return "its certificate was not accepted"
    except requests.ConnectionError:
        return "no connection, or it broke off"
    except requests.RequestException as error:  # an OSError itself, so it comes before
        return str(error) or type(error).__name__
    except OSError as error:
        raise disk_error(error, partial) from error
    except ValueError:
        return "what came has another checksum"
    return None


class _PoochProgress:
    """What pooch wants of a progress bar."""

    def __init__(self, task: Task) -> None:
        self.total = 0  # set by pooch
        self._task = task
        self._shown = 0

    def update(self, count: int) -> None:
        # pooch counts whole chunks, also for the last one, and everything again at its end.
        count = min(count, self.total - self._shown)
        self._shown += count
        self._task.advance(count)

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


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
    """One process at a time fetches this data set; yields an empty folder beside the target."""
    partial = raw / f".{entry.name}.partial"
    with exclusive(raw / f".{entry.name}.lock", f"fetching {entry.title}", progress):
        try:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            partial.mkdir()
        except OSError as error:
            raise disk_error(error, partial) from error
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
