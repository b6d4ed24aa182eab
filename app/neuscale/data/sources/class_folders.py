"""Classes of a tree, from its class folders, and the image files in them."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from posixpath import splitext

from neuscale.data.sources.decode import SUFFIXES, is_image
from neuscale.data.sources.file_tree import FileTree
from neuscale.errors import DataError

_MOST_NAMED = 10

_TABLES = (".csv", ".tsv", ".jsonl")

_LABELS = (
    "If a table has the classes, set `labels`, for example to {}; else move it into the folder of its class."
)

ByClass = dict[str, list[str]]


def by_class(
    tree: FileTree, folders: Mapping[str, str], nested: bool | None, warnings: list[str]
) -> dict[str, ByClass]:
    """For each split (`folders`: its folder), the class names with their sorted image files.

    A class is a folder of the split, with all images below it; with `nested`, every folder that contains
    images. With `nested` None, DataError is raised if folders below these look like the classes. Different
    Unicode forms of a name are one class. Oddities are added to `warnings`. Raises DataError for an image
    outside class folders, a class folder without images, and a split without classes.
    """
    images = {split: _images(tree, folder) for split, folder in folders.items()}
    for split, folder in folders.items():
        if not images[split] and not any(name.startswith(_prefix(folder)) for name in tree.folders):
            raise DataError(
                f"{tree.path}: {folder}: there is no class folder in it.", "Wanted is <class>/* in it."
            )
        if nested is None:
            _check_levels(tree, folder, images[split], warnings)
    deepest = _leaf_names(folders, images) if nested else {}
    found: dict[str, ByClass] = {}
    for split, folder in folders.items():
        classes: defaultdict[str, list[str]] = defaultdict(list)
        for name in images[split]:
            inner = name.removeprefix(_prefix(folder))
            key = deepest[_normal(inner.rpartition("/")[0])] if nested else _normal(inner.partition("/")[0])
            classes[key].append(name)
        _check_empty(tree, folder, classes, bool(nested))
        for files in classes.values():
            files.sort(key=lambda name: (_normal(name), name))
        found[split] = dict(classes)
    _note_spellings(folders, images, warnings)
    _note_left_out(tree, warnings)
    return found


def listed(names: Sequence[str]) -> str:
    """The names in quotes, at most the first ten."""
    shown = ", ".join(f"'{name}'" for name in names[:_MOST_NAMED])
    return shown + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")


def _prefix(folder: str) -> str:
    return f"{folder}/" if folder else ""


def _normal(name: str) -> str:
    """Unicode form NFC, in which a letter with an accent is one character; macOS may write another form."""
    return unicodedata.normalize("NFC", name)


def _images(tree: FileTree, folder: str) -> list[str]:
    """The image files below a folder. Raises DataError for one directly in it."""
    start = _prefix(folder)
    found = [name for name in tree.files if name.startswith(start) and is_image(name)]
    loose = [name for name in found if "/" not in name.removeprefix(start)]
    if loose:
        raise DataError(
            f"{tree.path}: {min(loose)}: this image lies in no class folder.",
            _LABELS.format(tables[0])
            if (tables := sorted(name for name in tree.files if splitext(name)[1].lower() in _TABLES))
            else "Move it into the folder of its class, or away, and run the command again.",
        )
    return found


def _check_levels(tree: FileTree, folder: str, images: list[str], warnings: list[str]) -> None:
    """Raise DataError if images are in deeper folders, which may be the classes instead."""
    start = _prefix(folder)
    direct: set[str] = set()
    below: defaultdict[str, set[str]] = defaultdict(set)
    deep = 0
    for name in images:
        top, *inner = name.removeprefix(start).split("/")[:-1]
        if inner:
            below[top].add(inner[0])
            deep += 1
        else:
            direct.add(top)
    only_below = {top: names for top, names in below.items() if top not in direct}
    # One subfolder of the same name in each class is fine, as in Tiny ImageNet.
    usual = len(direct | below.keys()) > 1 and all(len(names) == 1 for names in only_below.values())
    if only_below and not (usual and len(set().union(*only_below.values())) == 1):
        inner_names = sorted(f"{top}/{name}" for top, names in only_below.items() for name in names)
        raise DataError(
            f"{tree.path}: {folder or 'its top'}: the images lie in folders below"
            f" {listed(sorted(only_below))}: {listed(inner_names)}.",
            "If these are the classes, set `nested`; if they are parts of classes, `nested` to false.",
        )
    if direct & below.keys():
        inner_names = sorted(f"{top}/{name}" for top in direct & below.keys() for name in below[top])
        warnings.append(
            f"images in {listed(inner_names)} count as their class folder's; `nested` makes them classes"
        )


def _leaf_names(folders: Mapping[str, str], images: Mapping[str, list[str]]) -> dict[str, str]:
    """Folder below a split → class: its last part, or the whole path if two folders share that part."""
    inner = {
        _normal(name.removeprefix(_prefix(folder)).rpartition("/")[0])
        for split, folder in folders.items()
        for name in images[split]
    }
    leaves = {name: name.rpartition("/")[2] for name in inner}
    alike = Counter(leaves.values())
    return {name: leaf if alike[leaf] == 1 else name for name, leaf in leaves.items()}


def _check_empty(tree: FileTree, folder: str, classes: Mapping[str, list[str]], nested: bool) -> None:
    start = _prefix(folder)
    if nested:
        return
    for name in sorted(tree.folders):
        inner = name.removeprefix(start)
        if name.startswith(start) and inner and "/" not in inner and not classes.get(_normal(inner)):
            raise DataError(
                f"{tree.path}: {name}: there is no image in this class folder.",
                f"Add images ({', '.join(sorted(SUFFIXES))}) or remove it and run the command again.",
            )


def _note_spellings(folders: Mapping[str, str], images: Mapping[str, list[str]], warnings: list[str]) -> None:
    """Add a warning for folder names that differ only in Unicode form and are one class."""
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    for split, folder in folders.items():
        for name in images[split]:
            if not name.isascii():
                inner = name.removeprefix(_prefix(folder)).rpartition("/")[0]
                spellings[_normal(inner)].add(inner)
    for name, forms in sorted(spellings.items()):
        if len(forms) > 1:
            warnings.append(f"'{name}' is written in {len(forms)} forms of Unicode, and is one class")


def _note_left_out(tree: FileTree, warnings: list[str]) -> None:
    """Add a warning about files that are ignored, by suffix."""
    counts = Counter(splitext(name)[1].lower() or "no suffix" for name in tree.files if not is_image(name))
    if counts:
        shown = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(8))
        warnings.append(f"left out, being no images by their names: {shown}")
