"""Images that come with their class and perhaps their split: from a table, shards, Parquet or arrays."""

import re
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
    """An image of a tree, with its class and its split (train, val or test), where that is said.

    Where images may have several labels, `label` is a tuple of all that this one has, perhaps none.
    """

    name: str
    label: str | tuple[str, ...]
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
    several = any(isinstance(image.label, tuple) for image in images)
    labels = {label for image in images for label in labels_of(image)}
    if not labels:
        raise DataError(f"{where}: no image has a label.", "Give one that names the labels of images.")
    warnings = list(warnings)
    if classes is not None:
        if unused := [name for name in classes if name not in labels]:
            warnings.append(f"left out: {listed(unused)}, of which there is no image")
        names = [name for name in classes if name in labels]
    else:
        names = sorted(labels, key=int) if all(is_number(label) for label in labels) else sorted(labels)
    places = {name: label for label, name in enumerate(names)}
    found_sets = [tuple(sorted({places[label] for label in labels_of(image)})) for image in images]
    # The number of a set of labels stands for it wherever an image has one number.
    sets = sorted(set(found_sets)) if several else [(label,) for label in range(len(names))]
    numbers = {labels: number for number, labels in enumerate(sets)}
    samples: dict[str, list[Sample]] = {"train": []}
    for image, found_set in zip(images, found_sets, strict=True):
        samples.setdefault(image.split or "train", []).append(Sample(image.name, numbers[found_set]))
    for found in samples.values():
        found.sort(key=lambda sample: (sample.label, unicodedata.normalize("NFC", sample.name)))
    samples, held_out = _held_out(tree, samples, None if several else names, options, where, how_to_split)
    left = {label for sample in samples["train"] for label in sets[sample.label]}
    if missing := [name for label, name in enumerate(names) if label not in left]:
        raise DataError(
            f"{where}: the class {listed(missing)} has no training image.", "Add some, or remove it."
        )
    return ImageFilesSource(
        tree,
        names,
        samples,
        held_out,
        options.decoding,
        warnings=warnings,
        label_sets=sets if several else None,
    )


def labels_of(image: Labelled) -> tuple[str, ...]:
    """All labels of an image."""
    return image.label if isinstance(image.label, tuple) else (image.label,)


def splits_by_name(files: Sequence[str], warnings: list[str]) -> dict[str, str | None]:
    """Each file's split, by a folder above it or the first word of its name, as train-00000-of-00002.

    Where some have one, a file without is not used, and missing here: that is said in `warnings`.
    """
    found = {}
    for file in files:
        *folders, name = file.split("/")
        first = name.replace("_", "-").replace(".", "-").partition("-")[0]
        # `datasets` writes NAME-train.arrow, or NAME-train-00000-of-00002.arrow.
        last = re.sub(r"(-\d+-of-\d+)?\.arrow$", "", name).rpartition("-")[2] if name != first else ""
        words = [first, *([last] if name.endswith(".arrow") else []), *reversed(folders)]
        found[file] = next(filter(None, map(split_of, words)), None)
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
    classes: Sequence[str] | None,
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
