"""Sources in which each image has its class and perhaps its split: tables, shards, Parquet and arrays."""

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
    """An image of a tree, with its class and its split (train, val or test; None if not given).

    For multi-label data, `label` is a tuple of all labels of the image, possibly empty.
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
    """Create a source from labelled images, sorted by class, then by name.

    The classes are `classes`, without those that have no image, or else sorted by name, or by number if all
    are numbers. Images without a split are training images. If there is no val split, `val_share` or `folds`
    of the options take images; without these options, the test split becomes val. For messages, `where` names
    the file with the classes and `how_to_split` says how splits are given there. Raises DataError if no image
    is held out or a class has no training image, and UsageError if the options hold out images of a source
    that has a val split.
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
    # With several labels, a sample's label is the index of its label set.
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
    """All labels of an image, as a tuple."""
    return image.label if isinstance(image.label, tuple) else (image.label,)


def splits_by_name(files: Sequence[str], warnings: list[str]) -> dict[str, str | None]:
    """Split of each file, from the first word of its name (train-00000-of-00002) or a folder above it.

    If only some files have a split, the others are left out, with a line in `warnings`.
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
    """True for a class name that is a number."""
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
