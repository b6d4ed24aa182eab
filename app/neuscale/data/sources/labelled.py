"""Images that come with their class and perhaps their split: from a table, shards, Parquet or arrays."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from neuscale.data.sources.class_folders import listed
from neuscale.data.sources.file_tree import FileTree
from neuscale.data.sources.image_files import ImageFilesSource, Sample
from neuscale.data.sources.options import SourceOptions
from neuscale.data.sources.split_names import split_of
from neuscale.data.sources.splitting import split_samples
from neuscale.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class Labelled:
    """An image of a tree, with its class and its split (train, val or test), where that is said."""

    name: str
    label: str
    split: str | None


def labelled_source(
    tree: FileTree,
    images: Collection[Labelled],
    options: SourceOptions,
    where: str,
    *,
    classes: Sequence[str] | None = None,
    how_to_split: str = "",
    warnings: Sequence[str] = (),
) -> ImageFilesSource:
    """The images as a source: sorted by class, then by name; without a split they are for training.

    Classes are `classes`, of which those without an image are left out, or else sorted by name, by number
    where all are numbers. Where none is held out, `val_share` or `folds` take some; else the test split
    validates. `where` names the place of the classes, and `how_to_split` the way to give splits there.
    Raises DataError where no image is held out or a class is in no training image, and UsageError where
    the options take images from a source that has some to validate.
    """
    if not images:
        raise DataError(f"{where}: it names no images.", "Give one that has an entry for each image.")
    labels = {image.label for image in images}
    warnings = list(warnings)
    if classes is not None:
        if unused := [name for name in classes if name not in labels]:
            warnings.append(f"left out: {listed(unused)}, of which there is no image")
        names = [name for name in classes if name in labels]
    else:
        names = sorted(labels, key=int) if all(is_number(label) for label in labels) else sorted(labels)
    places = {name: label for label, name in enumerate(names)}
    samples: dict[str, list[Sample]] = {"train": []}
    for image in images:
        samples.setdefault(image.split or "train", []).append(Sample(image.name, places[image.label]))
    for found in samples.values():
        found.sort(key=lambda sample: (sample.label, unicodedata.normalize("NFC", sample.name)))
    samples, held_out = _held_out(tree, samples, names, options, where, how_to_split)
    left = {sample.label for sample in samples["train"]}
    if missing := [name for label, name in enumerate(names) if label not in left]:
        raise DataError(
            f"{where}: the class {listed(missing)} has no training image.", "Add some, or remove it."
        )
    return ImageFilesSource(tree, names, samples, held_out, options.decoding, warnings=warnings)


def splits_by_name(files: Sequence[str], warnings: list[str]) -> dict[str, str | None]:
    """Each file's split, by a folder above it or the first word of its name, as train-00000-of-00002.

    Where some have one, a file without is not used, and missing here: that is said in `warnings`.
    """
    found = {}
    for file in files:
        *folders, name = file.split("/")
        first = name.replace("_", "-").replace(".", "-").partition("-")[0]
        found[file] = next(filter(None, map(split_of, [first, *reversed(folders)])), None)
    if not any(found.values()):
        return dict(found)
    if unused := [file for file, split in found.items() if split is None]:
        warnings.append(f"not used: {listed(unused)}, whose name has no split")
    return {file: split for file, split in found.items() if split is not None}


def is_number(text: str) -> bool:
    """True for a class that is a number."""
    return text.isascii() and text.isdecimal()


def _held_out(
    tree: FileTree,
    samples: Mapping[str, list[Sample]],
    classes: Sequence[str],
    options: SourceOptions,
    where: str,
    how_to_split: str,
) -> tuple[dict[str, list[Sample]], str]:
    if options.splits:
        if "val" in samples:
            raise UsageError(f"{where}: it has images to validate, and {options.split_words} takes others.")
        return split_samples(samples, classes, options, tree.path), options.split_words
    if "val" in samples:
        return dict(samples), "val"
    if "test" in samples:
        return {"train": samples["train"], "val": samples["test"]}, "test"
    raise DataError(
        f"{where}: no image is held out to validate.",
        f"`val_share` 0.1 takes a tenth of each class{f'; {how_to_split}' if how_to_split else ''}.",
    )
