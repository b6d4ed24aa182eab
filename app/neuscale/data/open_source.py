"""Open the source of a data set, a catalogue entry or the user's files, and record its origin."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from neuscale.data.catalog import CATALOG, CatalogEntry
from neuscale.data.download.checksum import FileIdentity, file_identity, is_published
from neuscale.data.download.fetch import fetch
from neuscale.data.source_record import place_of
from neuscale.data.sources.cifar import CIFAR10, CIFAR100, CifarSource
from neuscale.data.sources.idx import IdxSource
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.label_table import table_checksum
from neuscale.data.sources.open_images import open_images
from neuscale.data.sources.options import SourceOptions
from neuscale.data.sources.source import Source
from neuscale.data.sources.tiny_imagenet import open_tiny_imagenet
from neuscale.errors import DataError, UsageError
from neuscale.hub import fetch_dataset, hub_name, origin_of
from neuscale.progress import Progress
from neuscale.units import now

MOST_REASONS = 10

_SUFFIXES = r"\.(zip|tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz|tzst|parquet|npz)$"

_CIFAR_LAYOUTS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def open_source(
    entry: CatalogEntry, path: Path | None, options: SourceOptions, root: Path, progress: Progress
) -> tuple[Source, dict[str, Any]]:
    """The source of `entry`, from `path` or else fetched, and its record for `meta.json`.

    The record: `catalog` (the entry's name), `kind` ("published", "archive" or "folder"),
    `given` (name of the user's file, or the origins of the published ones), `place` (its path), `held_out`,
    `size` and the other options given, `official` (all checksums are the published ones), `files`, and
    for a folder `listing`: the number, bytes and sha256 of its names, sizes and times.
    Raises DataError and UsageError as `prepare` does.
    """
    if path is None:
        fetched = fetch(entry, root, progress)
        paths = {name: file.path for name, file in fetched.items()}
        opened = _open_published(entry, paths, options)
        identities = [file.identity for file in fetched.values()]
        origins = sorted({file.origin for file in fetched.values()})
        record = {"files": [asdict(identity) for identity in identities]}
        return opened, _provenance(entry, "published", ", ".join(origins), opened, options, True, record)
    if entry.name == "fashion_mnist":
        return _given_fashion_mnist(entry, path, progress)
    if entry.name in _CIFAR_LAYOUTS:
        opened, identities, official = _given_cifar(entry, path, options, progress)
    else:
        # Listing a large archive takes as long as its checksum, so both run in parallel.
        with ThreadPoolExecutor(1, thread_name_prefix="list") as pool:
            listed = pool.submit(_open_images, entry, path, options, progress)
            identities = _identities(path, progress)
            opened = listed.result()
        official = _is_official(entry, path, identities)
    kind = "archive" if path.is_file() else "folder"
    record = place_of(path, identities)
    given = str(origin_of(path.absolute()) or path.absolute().name)
    return opened, _provenance(entry, kind, given, opened, options, official, record)


def named_source(name: str, source: Path | None, progress: Progress) -> tuple[str, Path | None, str | None]:
    """Resolve the arguments `name` and `source` of `prepare` to catalogue name, path and default name.

    Each may be a data set on the Hub, `hf:OWNER/NAME`, which is fetched. Raises DataError and UsageError.
    """
    if source is not None:
        of_hub = hub_name(str(source))
        return name, fetch_dataset(of_hub, progress) if of_hub else source.expanduser(), None
    of_hub = hub_name(name)
    if of_hub is None:
        return name, None, None
    return "image_folder", fetch_dataset(of_hub, progress), of_hub.slug


def _identities(path: Path, progress: Progress) -> list[FileIdentity]:
    return [file_identity(path, progress)] if path.is_file() else []


def _is_official(entry: CatalogEntry, path: Path, identities: list[FileIdentity]) -> bool:
    return any(is_published(identity, path, file) for identity in identities for file in entry.files)


def _open_images(
    entry: CatalogEntry, path: Path, options: SourceOptions, progress: Progress
) -> ImageFilesSource:
    if entry.name == "tiny_imagenet":
        return open_tiny_imagenet(path, options, progress)
    return open_images(path, options, entry.classes, progress)


def _given_cifar(
    entry: CatalogEntry, path: Path, options: SourceOptions, progress: Progress
) -> tuple[Source, list[FileIdentity], bool]:
    """The official archive, recognised by checksum or name, else a tree of image files."""
    identities = _identities(path, progress)
    official = _is_official(entry, path, identities)
    if not official and path.name != entry.files[0].name:
        return _open_images(entry, path, options, progress), identities, official
    if given := options.names:
        raise UsageError(f"`{given[0]}` is for image files; this archive holds arrays.", "Remove it.")
    return _open_published(entry, {entry.files[0].name: path}, options), identities, official


def _open_published(entry: CatalogEntry, paths: dict[str, Path], options: SourceOptions) -> Source:
    if entry.name == "fashion_mnist":
        return IdxSource(paths, entry.classes or ())
    (file,) = entry.files
    if entry.name in _CIFAR_LAYOUTS:
        return CifarSource(paths[file.name], entry.classes or (), file.md5, _CIFAR_LAYOUTS[entry.name])
    return open_tiny_imagenet(paths[file.name], options)


def _given_fashion_mnist(
    entry: CatalogEntry, folder: Path, progress: Progress
) -> tuple[Source, dict[str, Any]]:
    """The four files in the user's folder, which must be the published ones."""
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
    record = place_of(folder, identities)
    return opened, _provenance(entry, "folder", folder.absolute().name, opened, SourceOptions(), True, record)


def _date() -> str:
    """Current time, or `SOURCE_DATE_EPOCH` (reproducible-builds.org) for reproducible container images."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if re.fullmatch(r"[0-9]{1,11}", epoch):
        return datetime.fromtimestamp(int(epoch), UTC).isoformat(timespec="seconds")
    return now()


def _provenance(
    entry: CatalogEntry,
    kind: str,
    given: str,
    opened: Source,
    options: SourceOptions,
    official: bool,
    record: dict[str, Any],
) -> dict[str, Any]:
    if isinstance(opened, ImageFilesSource) and opened.listing is not None:
        record |= {"listing": opened.listing.record()}
    return {
        "catalog": entry.name,
        "kind": kind,
        "given": given,
        "held_out": opened.held_out,
        "size": options.size,
        "official": official,
        "prepared": _date(),
        **options.record(),
        **({"labels_sha256": table_checksum(options.labels)} if options.labels is not None else {}),
        **record,
    }


def check_arguments(entry: CatalogEntry, source: Path | None, options: SourceOptions) -> None:
    """Raise UsageError or DataError for arguments of `prepare` that are not compatible."""
    if source is None and not entry.files:
        raise UsageError(f"{entry.name} needs images.", "Set `source` to a folder, archive or file of them.")
    if source is not None and not source.exists():
        raise DataError(
            f"{source}: there is no such file or folder.", "Give the path of a folder or archive."
        )
    if options.encoding is not None and source is not None and source.is_dir():
        raise UsageError("`encoding` is for the names in an archive, and this is a folder.", "Remove it.")
    arrays = entry.name == "fashion_mnist" or (entry.name in ("cifar10", "cifar100") and source is None)
    if arrays and (given := options.names):
        raise UsageError(
            f"`{given[0]}` is for image files; {entry.title} comes as arrays of "
            f"{entry.native_size}×{entry.native_size} pixels.",
            "Remove it.",
        )
    if entry.files and (options.splits or options.nested is not None or options.labels is not None):
        raise UsageError(
            f"{entry.title} has its own splits and classes.",
            "Remove `val_share`, `folds`, `nested` and `labels`.",
        )


def packed_name(entry: CatalogEntry, source: Path | None, save_as: str | None) -> str:
    """Name for a data set made from `entry`. Raises UsageError for the name of another entry."""
    name = save_as or entry.name
    if save_as is None and entry.name == "image_folder" and source is not None:
        stem = re.sub(_SUFFIXES, "", source.absolute().name, flags=re.IGNORECASE)
        name = re.sub(r"[^a-z0-9_-]+", "_", stem.lower()).strip("_-")[:64] or "images"
    if name in CATALOG and name != entry.name:
        raise UsageError(f"'{name}' is the name of another data set.", "Set `save_as` to a name of your own.")
    return name


def report_warnings(opened: Source, progress: Progress) -> None:
    """Show warnings about the files and about their decoding."""
    if isinstance(opened, ImageFilesSource):
        observed = opened.decoding.observed
        for warning in (*opened.warnings, *(observed.warnings(opened.decoding) if observed else ())):
            progress.warning(warning)
        if opened.label_sets is not None:
            sets = len(opened.label_sets)
            progress.message(f"an image may have several labels; {sets:,} sets of them occur")
    if len(opened.classes) == 1:
        progress.warning(f"there is one class, '{opened.classes[0]}': a classifier needs two")


def report_left_out(reasons: list[str], progress: Progress) -> None:
    """Warn about images that were left out, naming the first few."""
    for reason in reasons[:MOST_REASONS]:
        progress.warning(f"left out: {reason}")
    if len(reasons) > MOST_REASONS:
        progress.warning(f"and {len(reasons) - MOST_REASONS} more left out: all are in meta.json")
