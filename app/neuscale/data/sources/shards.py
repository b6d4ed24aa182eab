"""WebDataset shards: tar archives in which the files of an image share a key (0001.jpg and 0001.cls).

The convention is that of github.com/webdataset/webdataset: the key is the file's path up to the first dot
after the last slash, and the rest is the type of the file.
"""

import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

from neuscale.data.sources.class_folders import listed
from neuscale.data.sources.decode import is_image
from neuscale.data.sources.file_tree import FileTree
from neuscale.data.sources.folder_tree import FolderTree
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.labelled import Labelled, is_number, labelled_source, splits_by_name
from neuscale.data.sources.options import SourceOptions
from neuscale.data.sources.table_records import LABEL_COLUMNS
from neuscale.data.sources.tar_tree import SUFFIXES as TAR_SUFFIXES
from neuscale.data.sources.tar_tree import TarTree
from neuscale.errors import DataError, UsageError
from neuscale.untrusted import parse_json

# Files beside the shards with one class name per line, for labels that are numbers.
CLASS_LISTS = ("classnames.txt", "classes.txt", "class_names.txt", "labels.txt")

_MAX_LABEL_BYTES = 1 << 20

_FIX = "Make the shards anew: each image has a key of its own, with a .cls or .json of the same key."


class ShardsTree:
    """The files of several shards as a FileTree, each below the name of its shard."""

    def __init__(self, folder: FolderTree, shards: Collection[str]) -> None:
        self.path = folder.path
        self.listing = folder.listing
        self.warnings: list[str] = []
        self.folders: set[str] = set()
        self.files: dict[str, int] = {}
        self.listing_bytes = folder.listing_bytes
        self._shards = {shard: TarTree(folder.path / shard) for shard in shards}
        for shard, tree in self._shards.items():
            self.files.update((f"{shard}/{name}", size) for name, size in tree.files.items())
            self.listing_bytes += tree.listing_bytes

    def members(self) -> Iterator[tuple[str, str]]:
        """Yield shard and name of every file."""
        for shard, tree in self._shards.items():
            for name in tree.files:
                yield shard, f"{shard}/{name}"

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See FileTree."""
        wanted = set(names)
        for shard, tree in self._shards.items():
            inside = [name for name in tree.files if f"{shard}/{name}" in wanted]
            for name, data in tree.read(inside) if inside else ():
                yield f"{shard}/{name}", data

    def check_rest(self, used: Collection[str]) -> None:
        """Do nothing, as in a TarTree."""


def shards_in(folder: FolderTree) -> list[str]:
    """The tar archives in a folder; [] if it contains images and so is not a folder of shards."""
    if any(is_image(name) for name in folder.files):
        return []
    return sorted(name for name in folder.files if name.lower().endswith(TAR_SUFFIXES))


def is_shard(tree: FileTree) -> bool:
    """True for an archive in which images have a .cls or .json file with the same key."""
    keys = {_key(name)[0] for name in tree.files if is_image(name)}
    return any(
        kind in ("cls", "json") and key in keys
        for key, kind in map(_key, tree.files)
        if kind in ("cls", "json")
    )


def open_shards(
    tree: ShardsTree | TarTree, shards: Collection[str], options: SourceOptions
) -> ImageFilesSource:
    """Open the images of shards, or of a single shard, with their classes.

    The class is the content of the `.cls` file, or a field of the `.json`: `label_column`, or one with a
    common name such as label or class. Numbers become names if the folder has a list of them
    (`classnames.txt`). The split of a shard comes from its name or folder. Raises DataError, naming shard and
    key, for an image without a class, and as `labelled_source` does.
    """
    warnings = [*tree.warnings]
    splits = splits_by_name(list(shards), warnings) if shards else {"": None}
    images: dict[str, str] = {}
    beside: dict[str, dict[str, str]] = {}
    split_of_image: dict[str, str | None] = {}
    for shard, name in (
        tree.members() if isinstance(tree, ShardsTree) else (("", name) for name in tree.files)
    ):
        if shard not in splits:
            continue
        key, kind = _key(name)
        if is_image(name):
            if "." in kind:  # a mask or a thumbnail beside the image
                continue
            if key in images:
                raise DataError(f"{tree.path}: {key}: there are two images of this key.", _FIX)
            images[key] = name
            split_of_image[key] = splits[shard]
        elif kind in ("cls", "json"):
            beside.setdefault(key, {})[kind] = name
    labels = _labels(tree, images, beside, options)
    classes = _class_list(tree.path) if shards else None
    if classes is not None and all(map(is_number, labels.values())):
        labels = {key: _class_name(tree.path, classes, images[key], label) for key, label in labels.items()}
    elif classes is not None:
        classes = None  # the labels are class names already
    found = [Labelled(name, labels[key], split_of_image[key]) for key, name in images.items()]
    return labelled_source(
        tree,
        found,
        options,
        f"{tree.path}",
        classes=classes,
        how_to_split="or name the shards after their splits, as train-0000.tar and val-0000.tar",
        warnings=warnings,
    )


def _key(name: str) -> tuple[str, str]:
    """Key and type of a file; the type follows the first dot of its last part, in lower case."""
    folder, slash, file = name.rpartition("/")
    stem, _, kind = file.partition(".")
    return f"{folder}{slash}{stem}", kind.lower()


def _labels(
    tree: FileTree, images: dict[str, str], beside: dict[str, dict[str, str]], options: SourceOptions
) -> dict[str, str]:
    """The class of each key."""
    kinds = ("json", "cls") if options.label_column is not None else ("cls", "json")
    if options.label_column is not None and not any("json" in files for files in beside.values()):
        raise UsageError(f"{tree.path}: `label_column` names a field of .json files, and there are none.")
    wanted: dict[str, str] = {}
    for key in images:
        files = beside.get(key, {})
        name = files.get(kinds[0]) or files.get(kinds[1])
        if name is None:
            raise DataError(f"{tree.path}: {images[key]}: no .cls and no .json has its class.", _FIX)
        if tree.files[name] > _MAX_LABEL_BYTES:
            raise DataError(f"{tree.path}: {name}: {tree.files[name]:,} bytes are no class.", _FIX)
        wanted[name] = key
    found = {}
    for name, data in tree.read(wanted):
        where = f"{tree.path}: {name}"
        try:
            text = data.decode("utf-8-sig").strip()
            label = text if name.lower().endswith(".cls") else _field(where, parse_json(text), options)
        except ValueError as error:
            raise DataError(f"{where}: not readable ({error}).", _FIX) from None
        if not label or "\n" in label:
            raise DataError(f"{where}: it does not hold one class.", _FIX)
        found[wanted[name]] = unicodedata.normalize("NFC", label)
    return found


def _field(where: str, record: object, options: SourceOptions) -> str:
    if not isinstance(record, dict):
        raise DataError(f"{where}: not an object with fields.", _FIX)
    lower = {str(name).lower(): name for name in record}
    asked = options.label_column
    column = (
        asked if asked in record else next((lower[name] for name in LABEL_COLUMNS if name in lower), None)
    )
    if column is None or (asked is not None and column != asked):
        raise UsageError(
            f"{where}: which field is the class, is not clear; there are {listed(sorted(map(str, record)))}.",
            "Set `label_column`.",
        )
    value = record[column]
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DataError(f"{where}: '{column}' is no text and no number.", "Give one class an image.")
    return str(value).strip()


def _class_list(folder: Path) -> list[str] | None:
    for name in CLASS_LISTS:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            names = [unicodedata.normalize("NFC", line).strip() for line in lines if line.strip()]
            if len(set(names)) != len(names):
                raise DataError(f"{folder / name}: it names a class twice.", "Correct or remove it.")
            return names
    return None


def _class_name(folder: Path, classes: list[str], image: str, label: str) -> str:
    if int(label) < len(classes):
        return classes[int(label)]
    raise DataError(
        f"{folder}: {image}: {label} is none of the {len(classes)} classes in its list.",
        f"Correct or remove the list ({', '.join(CLASS_LISTS)}).",
    )
