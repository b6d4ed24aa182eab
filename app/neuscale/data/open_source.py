"""From a catalogue entry, or the user's own files, to an opened source and the record of where it is from."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neuscale.data.catalog import CatalogEntry
from neuscale.data.checksum import FileIdentity, file_identity, is_published
from neuscale.data.fetch import fetch
from neuscale.data.sources.cifar import CIFAR10, CIFAR100, CifarSource
from neuscale.data.sources.folder import open_image_folder
from neuscale.data.sources.idx import IdxSource
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.source import Source
from neuscale.data.sources.tiny_imagenet import open_tiny_imagenet
from neuscale.errors import DataError, UsageError
from neuscale.progress import Progress

_CIFAR_LAYOUTS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def open_source(
    entry: CatalogEntry, path: Path | None, size: int | None, root: Path, progress: Progress
) -> tuple[Source, dict[str, Any]]:
    """The source of `entry`, from `path` or else fetched, and what `meta.json` says about it.

    The record: `catalog` (the entry's name), `kind` ("published", "archive" or "folder"),
    `given` (the user's file, or where the published ones were found), `held_out`, `size`,
    `official` (all checksums are the published ones) and `files`.
    Raises DataError and UsageError as `prepare` says.
    """
    if path is None:
        fetched = fetch(entry, root, progress)
        paths = {name: file.path for name, file in fetched.items()}
        opened = _open_published(entry, paths, size)
        identities = [file.identity for file in fetched.values()]
        origins = sorted({file.origin for file in fetched.values()})
        return opened, _provenance(entry, "published", ", ".join(origins), opened, size, True, identities)
    if entry.name == "fashion_mnist":
        return _given_fashion_mnist(entry, path, progress)
    if entry.name in _CIFAR_LAYOUTS:
        opened, identities, official = _given_cifar(entry, path, size, progress)
    else:
        # The list of a large archive takes as long as its checksum.
        with ThreadPoolExecutor(1, thread_name_prefix="list") as pool:
            listed = pool.submit(_open_images, entry, path, size)
            identities = _identities(path, progress)
            opened = listed.result()
        official = _is_official(entry, path, identities)
    kind = "archive" if path.is_file() else "folder"
    return opened, _provenance(entry, kind, path.absolute().name, opened, size, official, identities)


def _identities(path: Path, progress: Progress) -> list[FileIdentity]:
    return [file_identity(path, progress)] if path.is_file() else []


def _is_official(entry: CatalogEntry, path: Path, identities: list[FileIdentity]) -> bool:
    return any(is_published(identity, path, file) for identity in identities for file in entry.files)


def _open_images(entry: CatalogEntry, path: Path, size: int | None) -> ImageFilesSource:
    if entry.name == "tiny_imagenet":
        return open_tiny_imagenet(path, size)
    return open_image_folder(path, size, entry.classes)


def _given_cifar(
    entry: CatalogEntry, path: Path, size: int | None, progress: Progress
) -> tuple[Source, list[FileIdentity], bool]:
    """The official archive, known by its checksum or its name, or a tree of image files."""
    identities = _identities(path, progress)
    official = _is_official(entry, path, identities)
    if not official and path.name != entry.files[0].name:
        return _open_images(entry, path, size), identities, official
    if size is not None:
        raise UsageError("'--size' is for image files; this archive holds arrays.", "Leave it away.")
    return _open_published(entry, {entry.files[0].name: path}, size), identities, official


def _open_published(entry: CatalogEntry, paths: dict[str, Path], size: int | None) -> Source:
    if entry.name == "fashion_mnist":
        return IdxSource(paths, entry.classes or ())
    (file,) = entry.files
    if entry.name in _CIFAR_LAYOUTS:
        return CifarSource(paths[file.name], entry.classes or (), file.md5, _CIFAR_LAYOUTS[entry.name])
    return open_tiny_imagenet(paths[file.name], size)


def _given_fashion_mnist(
    entry: CatalogEntry, folder: Path, progress: Progress
) -> tuple[Source, dict[str, Any]]:
    """The four files in a folder that the user gave; they must be the published ones."""
    paths = {file.name: folder / file.name for file in entry.files}
    identities = []
    for file in entry.files:
        path = paths[file.name]
        if not path.is_file():
            raise DataError(
                f"{path}: there is no such file.",
                f"Give a folder with {', '.join(paths)}.",
            )
        identity = file_identity(path, progress)
        if not is_published(identity, path, file):
            raise DataError(
                f"{path}: checksum differs (md5 {identity.md5[:8]}… instead of {file.md5[:8]}…).",
                "Get this file anew and run the command again.",
            )
        identities.append(identity)
    opened = IdxSource(paths, entry.classes or ())
    return opened, _provenance(entry, "folder", folder.absolute().name, opened, None, True, identities)


def _provenance(
    entry: CatalogEntry,
    kind: str,
    given: str,
    opened: Source,
    size: int | None,
    official: bool,
    identities: list[FileIdentity],
) -> dict[str, Any]:
    return {
        "catalog": entry.name,
        "kind": kind,
        "given": given,
        "held_out": opened.held_out,
        "size": size,
        "official": official,
        "files": [asdict(identity) for identity in identities],
    }
