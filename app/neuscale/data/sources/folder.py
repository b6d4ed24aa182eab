"""The layout that everybody uses for their own images: `train/<class>/*` and `val/<class>/*`."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from neuscale.data.sources.archive import open_tree
from neuscale.data.sources.decode import SUFFIXES
from neuscale.data.sources.file_tree import FileTree
from neuscale.data.sources.image_files import ImageFilesSource, Sample
from neuscale.errors import DataError

HELD_OUT_FOLDERS = ("val", "validation", "valid", "test")

_LAYOUT = "Wanted is a tree of train/<class>/* and val/<class>/* (or validation, valid, test)."


def open_image_folder(
    path: Path, size: int | None = None, classes: Sequence[str] | None = None
) -> ImageFilesSource:
    """The images below train/<class>/ and val/<class>/ of a folder or archive, at any depth.

    The tree may lie in one folder at the top of the archive. Classes are sorted by name, images
    by path, as `torchvision.datasets.ImageFolder` has them. With `classes`, the class folders
    must be exactly these. Raises DataError, naming archive and folder, where there is no such
    tree, a class has no image, or a held-out class is unknown.
    """
    tree = open_tree(path)
    top = _top(tree)
    train = f"{top}train"
    held_out = next((name for name in HELD_OUT_FOLDERS if f"{top}{name}" in tree.folders), None)
    if held_out is None:
        raise DataError(f"{path}: there is no folder of held-out images beside '{train}'.", _LAYOUT)
    images = {"train": _by_class(tree, train), "val": _by_class(tree, f"{top}{held_out}")}

    names = list(classes) if classes is not None else sorted(images["train"])
    for split, folder in (("train", train), ("val", f"{top}{held_out}")):
        unknown = sorted(set(images[split]) - set(names))
        if unknown:
            raise DataError(
                f"{path}: {folder}/{unknown[0]}: there is no such class"
                f"{' in train' if classes is None else f', they are {_listed(names)}'}.",
                "Rename or remove this folder, or add the class to both parts, and run the command again.",
            )
    if missing := sorted(set(names) - set(images["train"])):
        raise DataError(f"{path}: {train}: the class {_listed(missing)} is missing.", "Add it.")
    samples = {
        split: [Sample(file, label) for label, name in enumerate(names) for file in found.get(name, [])]
        for split, found in images.items()
    }
    return ImageFilesSource(tree, names, samples, held_out, size)


def _top(tree: FileTree) -> str:
    """What stands before 'train': nothing, or the one folder that everything lies in."""
    if "train" in tree.folders:
        return ""
    tops = [folder for folder in tree.folders if "/" not in folder and f"{folder}/train" in tree.folders]
    if len(tops) == 1:
        return f"{tops[0]}/"
    seen = (
        _listed(sorted({PurePosixPath(name).parts[0] for name in (*tree.files, *tree.folders)})) or "nothing"
    )
    raise DataError(f"{tree.path}: there is no folder 'train' in it; at its top is {seen}.", _LAYOUT)


def _by_class(tree: FileTree, folder: str) -> dict[str, list[str]]:
    """Class name to image files, sorted; every class folder has at least one."""
    start = f"{folder}/"
    found: dict[str, list[str]] = {
        name.removeprefix(start): []
        for name in tree.folders
        if name.startswith(start) and "/" not in name.removeprefix(start)
    }
    for name in sorted(tree.files):
        if not name.startswith(start) or PurePosixPath(name).suffix.lower() not in SUFFIXES:
            continue
        class_name, slash, _ = name.removeprefix(start).partition("/")
        if not slash:
            raise DataError(
                f"{tree.path}: {name}: this image lies in no class folder.",
                "Move it into the folder of its class, or away, and run the command again.",
            )
        found[class_name].append(name)
    if not found:
        raise DataError(f"{tree.path}: {folder}: there is no class folder in it.", _LAYOUT)
    for class_name, files in sorted(found.items()):
        if not files:
            raise DataError(
                f"{tree.path}: {folder}/{class_name}: there is no image in this class folder.",
                f"Add images ({', '.join(sorted(SUFFIXES))}) or remove it and run the command again.",
            )
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")
