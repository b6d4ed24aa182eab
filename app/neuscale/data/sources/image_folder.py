"""Folder layouts of the user's images: `train/<class>/*` and `val/<class>/*`, or classes without splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from neuscale.data.sources.class_folders import by_class, listed
from neuscale.data.sources.decode import is_image
from neuscale.data.sources.file_tree import FileTree
from neuscale.data.sources.image_files import ImageFilesSource, Sample
from neuscale.data.sources.options import USUAL, SourceOptions
from neuscale.data.sources.split_names import TEST_NAMES, TRAIN_NAMES, VAL_NAMES
from neuscale.data.sources.splitting import split_samples
from neuscale.errors import DataError, UsageError

_LAYOUT = "Wanted is a tree of train/<class>/* and val/<class>/* (or validation, valid, dev, test)."

_LOOSE = " Images without class folders need a table of their classes: `labels`."


@dataclass(frozen=True)
class _Splits:
    """Folders of a tree's splits; without splits, `train` is the folder of all classes."""

    train: str
    val: str | None
    test: str | None
    others: Sequence[str] = ()

    @property
    def held_out(self) -> str | None:
        """Folder of the split "val": the test images if there are no validation images."""
        return self.val or self.test


def open_image_folder(
    tree: FileTree, options: SourceOptions = USUAL, classes: Sequence[str] | None = None
) -> ImageFilesSource:
    """Open the images below train/<class>/ and val/<class>/ of a tree, at any depth.

    The tree may be nested in folders that contain nothing else. Classes are sorted by name, images by path,
    as in `torchvision.datasets.ImageFolder`. If no images are held out, `val_share` or `folds` of the
    options hold out some of each class. With `classes`, the class folders must be exactly these.

    Raises DataError, naming archive and folder, if there is no such tree, a class has no image, a held-out
    class is unknown, or the classes may be on another folder level.
    """
    path = tree.path
    splits = _find_splits(tree, options)
    warnings = [*tree.warnings]
    folders = {"train": splits.train}
    if splits.held_out is not None and not options.splits:
        folders["val"] = splits.held_out
    if splits.test is not None and splits.test != folders.get("val"):
        folders["test"] = splits.test
    found = by_class(tree, folders, options.nested, warnings)
    names = list(classes) if classes is not None else sorted(found["train"])
    for split, folder in folders.items():
        if unknown := sorted(set(found[split]) - set(names)):
            raise DataError(
                f"{path}: {folder}/{unknown[0]}: there is no such class"
                f"{' in train' if classes is None else f', they are {listed(names)}'}.",
                "Rename or remove this folder, or add the class to both parts, and run the command again.",
            )
    if missing := sorted(set(names) - set(found["train"])):
        raise DataError(f"{path}: {splits.train or 'it'}: the class {listed(missing)} is missing.", "Add it.")
    samples = {
        split: [Sample(file, label) for label, name in enumerate(names) for file in files.get(name, [])]
        for split, files in found.items()
    }
    held_out = splits.held_out.rpartition("/")[2] if splits.held_out else ""
    if options.splits:
        samples = split_samples(samples, names, options, path)
        held_out = options.split_words
    warnings += _unused(tree, splits)
    return ImageFilesSource(tree, names, samples, held_out, options.decoding, warnings=warnings)


def _find_splits(tree: FileTree, options: SourceOptions) -> _Splits:
    """Find the folders of the splits. Raises DataError if there are none, or several of the same kind."""
    tops = sorted(
        {
            folder.rpartition("/")[0]
            for folder in tree.folders
            if folder.rpartition("/")[2].lower() in TRAIN_NAMES and _has_folders(tree, folder)
        },
        key=lambda top: (top.count("/") if top else -1, top),
    )
    if not tops:
        return _classes_only(tree, options)
    top = tops[0]
    if len(tops) > 1 and tops[1].count("/") == top.count("/") and top:
        raise DataError(
            f"{tree.path}: there are several folders with training images: {listed(tops)}.",
            "Give the one that you mean.",
        )
    prefix = f"{top}/" if top else ""
    beside = {
        folder.removeprefix(prefix): folder
        for folder in sorted(tree.folders)
        if folder.startswith(prefix) and "/" not in folder.removeprefix(prefix)
    }
    train = _one_of(tree, beside, TRAIN_NAMES)
    val, test = _one_of(tree, beside, VAL_NAMES), _one_of(tree, beside, TEST_NAMES)
    assert train is not None
    if val is not None and options.splits:
        raise UsageError(
            f"{tree.path}: it has images to validate, in '{val}', and {options.split_words} takes others.",
            "Remove the option, or that folder.",
        )
    if val is None and test is None and not options.splits:
        raise DataError(
            f"{tree.path}: there is no folder of held-out images beside '{train}'.",
            f"{_LAYOUT} `val_share` 0.1 takes a tenth of each class instead.",
        )
    others = [folder for folder in beside.values() if folder not in (train, val, test)]
    return _Splits(train, val, test, others)


def _one_of(tree: FileTree, folders: dict[str, str], names: Sequence[str]) -> str | None:
    """The folder with the first of `names` that exists, ignoring case; None if there is none."""
    for name in names:
        found = [folder for key, folder in folders.items() if key.lower() == name]
        if len(found) > 1:
            raise DataError(f"{tree.path}: there are {listed(found)}, of which one is wanted.", "Join them.")
        if found:
            return found[0]
    return None


def _classes_only(tree: FileTree, options: SourceOptions) -> _Splits:
    """The folder of all classes, for a tree without splits if the options create them. Raises DataError."""
    top = _innermost(tree)
    prefix = f"{top}/" if top else ""
    inner = (name.removeprefix(prefix) for name in tree.files if name.startswith(prefix) and is_image(name))
    classes = sorted({name.partition("/")[0] for name in inner if "/" in name})
    if classes and options.splits:
        return _Splits(top, None, None)
    if len(classes) > 1:
        where = f"in '{top}' of it" if top else "in it"
        raise DataError(
            f"{tree.path}: there is no folder 'train' {where}; its folders of images are {listed(classes)}.",
            "If these are the classes, `val_share` 0.1 takes a tenth of each to validate. " + _LAYOUT,
        )
    tops = {PurePosixPath(name).parts[0] for name in (*tree.files, *tree.folders)}
    raise DataError(
        f"{tree.path}: there is no folder 'train' in it; at its top is {listed(sorted(tops)) or 'nothing'}.",
        _LAYOUT + (_LOOSE if any(is_image(name) for name in tops) else ""),
    )


def _innermost(tree: FileTree) -> str:
    """The innermost folder reached through folders that contain only one folder and no images."""
    top = ""
    while True:
        prefix = f"{top}/" if top else ""
        if any(is_image(name) for name in tree.files if name.rpartition("/")[0] == top):
            return top
        inside = {name.removeprefix(prefix) for name in tree.folders if name.startswith(prefix)}
        only = {name for name in inside if "/" not in name}
        if len(only) != 1 or not _has_folders(tree, f"{prefix}{min(only)}"):
            return top
        top = f"{prefix}{min(only)}"


def _has_folders(tree: FileTree, folder: str) -> bool:
    return any(name.startswith(f"{folder}/") for name in tree.folders)


def _unused(tree: FileTree, splits: _Splits) -> list[str]:
    """Warnings about images in folders beside the splits."""
    found = []
    for folder in splits.others:
        count = sum(is_image(name) for name in tree.files if name.startswith(f"{folder}/"))
        if count:
            found.append(f"not used: the {count:,} image{'s' * (count > 1)} in '{folder}', which is no split")
    return found
