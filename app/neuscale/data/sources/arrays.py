"""Images and labels as arrays in a `.npz` file, as written by numpy and the MedMNIST collection."""

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuscale.data.sources.class_folders import listed
from neuscale.data.sources.decode import MAX_PIXELS
from neuscale.data.sources.file_tree import GET_ANEW
from neuscale.data.sources.image_files import ImageFilesSource
from neuscale.data.sources.labelled import Labelled, labelled_source
from neuscale.data.sources.listing import Listing
from neuscale.data.sources.npz import StoredArray, open_member, read_array, read_exactly, stored_arrays
from neuscale.data.sources.options import SourceOptions
from neuscale.data.sources.split_names import split_of
from neuscale.errors import DataError

MAX_LABEL_BYTES = 1 << 30

# Common names of the arrays, in lower case and without the name of a split.
IMAGES = ("x", "images", "image", "imgs", "data", "pixels")
LABELS = ("y", "labels", "label", "targets", "target", "class", "classes_of_images")
NAMES = ("class_names", "label_names", "classes", "names")

_NAMING = "Call the arrays x_train, y_train, x_val and y_val, or train_images, train_labels and so on."


class ArrayTree:
    """Images of arrays as a FileTree: `<array>/<index>.ppm`, uncompressed PPM, PGM or 16-bit PGM files."""

    def __init__(self, path: Path, arrays: Collection[StoredArray]) -> None:
        self.path = path
        self.listing: Listing | None = None
        self.listing_bytes = 0
        self.warnings: list[str] = []
        self.folders: set[str] = set()
        self.files: dict[str, int] = {}
        self._arrays = {array.key: array for array in arrays}
        for array in arrays:
            size = _image_bytes(array)
            self.files.update((name_of(array.key, place), size) for place in range(array.shape[0]))

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See FileTree."""
        wanted: dict[str, set[int]] = {}
        for name in names:
            key, _, place = name.rpartition("/")
            wanted.setdefault(key, set()).add(int(place.partition(".")[0]))
        for key, places in wanted.items():
            array = self._arrays[key]
            size = _image_bytes(array)
            with open_member(self.path, array.member) as stream:
                read_exactly(stream, array.start)
                for number in range(max(places) + 1):
                    data = read_exactly(stream, size)
                    if number in places:
                        pixels = np.frombuffer(data, array.dtype).reshape(array.shape[1:])
                        yield name_of(key, number), _as_file(pixels)

    def check_rest(self, used: Collection[str]) -> None:
        """Do nothing: an array is read to its end, which verifies its checksum."""


def name_of(key: str, place: int) -> str:
    """File name of an image of an array."""
    return f"{key}/{place:08}.ppm"


def open_arrays(path: Path, options: SourceOptions) -> ImageFilesSource:
    """Open the images of a `.npz` file: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W], or uint16 [N, H, W].

    Labels are numbers or strings [N] or [N, 1], or one-hot [N, classes]; with `multi_label` any zeros and
    ones [N, classes]. The name of an array gives its split and its role: x_train, train_images; two arrays
    without such names are distinguished by their shapes. Raises DataError for arrays of another kind, or that
    do not fit each other, and as `labelled_source` does.
    """
    stored = {array.key: array for array in stored_arrays(path)}
    pairs = _pairs(path, stored)
    tree = ArrayTree(path, [images for images, _ in pairs.values()])
    names = _class_names(path, stored)
    found = []
    for split, (images, labels) in pairs.items():
        _check_images(path, images)
        values: Sequence[str | tuple[str, ...]] = (
            _label_sets(path, labels) if options.multi_label else _labels(path, labels)
        )
        if len(values) != images.shape[0]:
            raise DataError(
                f"{path}: {images.key} has {images.shape[0]:,} images, {labels.key} {len(values):,} labels.",
                GET_ANEW,
            )
        if names is not None:
            values = _named(path, labels.key, values, names)
        found += [
            Labelled(name_of(images.key, place), label, split or None) for place, label in enumerate(values)
        ]
    return labelled_source(tree, found, options, str(path), classes=names, how_to_split=_NAMING)


def _pairs(path: Path, stored: dict[str, StoredArray]) -> dict[str, tuple[StoredArray, StoredArray]]:
    """Images and labels of each split; the key "" is for a single pair without a split in its names."""
    images: dict[str, StoredArray] = {}
    labels: dict[str, StoredArray] = {}
    for key, array in stored.items():
        split, role = _role(key)
        for there, names in ((images, IMAGES), (labels, LABELS)):
            if role in names:
                if split in there:
                    raise DataError(f"{path}: '{there[split].key}' and '{key}' mean the same.", "Remove one.")
                there[split] = array
    if not images and len(stored) == 2:
        first, second = sorted(stored.values(), key=lambda array: -len(array.shape))
        images[""], labels[""] = first, second
    if not images or images.keys() != labels.keys():
        raise DataError(f"{path}: which of {listed(sorted(stored))} are images and labels?", _NAMING)
    if "" in images and len(images) > 1:
        raise DataError(f"{path}: '{images[''].key}' names no split, and others do.", _NAMING)
    return {split: (images[split], labels[split]) for split in images}


def _role(key: str) -> tuple[str, str]:
    """The split in an array's name, or "", and the rest of the name."""
    words = key.lower().replace("-", "_").split("_")
    for word in words:
        if (split := split_of(word)) is not None:
            return split, "_".join(other for other in words if other != word)
    return "", "_".join(words)


def _check_images(path: Path, array: StoredArray) -> None:
    shape = array.shape
    deep = len(shape) == 4 and _channel_axis(shape[1:]) is not None
    if len(shape) != 3 and not deep:
        raise DataError(
            f"{path}: {array.key}: of shape {list(shape)}.",
            "Wanted are images [N, H, W], [N, H, W, C] or [N, C, H, W] of 1 or 3 channels.",
        )
    if array.dtype != np.uint8 and not (array.dtype == np.uint16 and len(shape) == 3):
        raise DataError(
            f"{path}: {array.key}: values of type {array.dtype}.", "Save them as uint8, from 0 to 255."
        )
    if not 0 < int(np.prod(shape[1:], dtype=object)) <= 4 * MAX_PIXELS:
        raise DataError(f"{path}: {array.key}: images of shape {list(shape[1:])}.", "Save smaller ones.")


def _channel_axis(shape: Sequence[int]) -> int | None:
    """Channel axis among the three axes of an image; the last one if both are possible."""
    return next((axis for counts in ((1, 3), (4,)) for axis in (2, 0) if shape[axis] in counts), None)


def _labels(path: Path, array: StoredArray) -> list[str]:
    """The label of each image."""
    if int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize > MAX_LABEL_BYTES:
        raise DataError(f"{path}: {array.key}: too large for labels.", _NAMING)
    values = read_array(path, array)
    if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind in "biuf":
        if not (((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all()):
            raise DataError(
                f"{path}: {array.key}: of shape {list(array.shape)}, and not one 1 in each row.",
                "Give one class an image, or set `multi_label`.",
            )
        values = values.argmax(axis=1)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biuU":
        raise DataError(
            f"{path}: {array.key}: {values.dtype} of shape {list(array.shape)} are no labels.",
            "Give a whole number or a text for each image.",
        )
    if values.dtype.kind == "U":
        labels = [unicodedata.normalize("NFC", text).strip() for text in values.tolist()]
        if not all(labels):
            raise DataError(f"{path}: {array.key}: label {labels.index('')} is empty.", "Complete it.")
        return labels
    if values.size and int(values.min()) < 0:
        raise DataError(f"{path}: {array.key}: it has a class below 0.", "Count classes from 0.")
    return [str(int(value)) for value in values.tolist()]


def _label_sets(path: Path, array: StoredArray) -> list[tuple[str, ...]]:
    """All labels of each image, from zeros and ones [N, classes]."""
    if int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize > MAX_LABEL_BYTES:
        raise DataError(f"{path}: {array.key}: too large for labels.", _NAMING)
    values = read_array(path, array)
    if values.ndim != 2 or values.dtype.kind not in "biuf" or not ((values == 0) | (values == 1)).all():
        raise DataError(
            f"{path}: {array.key}: {values.dtype} of shape {list(array.shape)} are not zeros and ones.",
            "Give [images, classes], or remove `multi_label`.",
        )
    return [tuple(str(label) for label in np.flatnonzero(row).tolist()) for row in values]


def _class_names(path: Path, stored: dict[str, StoredArray]) -> list[str] | None:
    found = [array for key, array in stored.items() if key.lower() in NAMES]
    if len(found) != 1 or found[0].dtype.kind != "U" or len(found[0].shape) != 1:
        return None
    names = [unicodedata.normalize("NFC", text).strip() for text in read_array(path, found[0]).tolist()]
    if len(set(names)) != len(names) or not all(names):
        raise DataError(f"{path}: {found[0].key}: a class has no name, or two have one.", "Correct it.")
    return names


def _named(
    path: Path, key: str, values: Sequence[str | tuple[str, ...]], names: Sequence[str]
) -> list[str | tuple[str, ...]]:
    """Replace class numbers by class names."""
    given = {label for value in values for label in (value if isinstance(value, tuple) else (value,))}
    if given <= set(names):
        return list(values)
    numbers = {label: int(label) if label.isdecimal() else len(names) for label in given}
    if max(numbers.values()) >= len(names):
        raise DataError(f"{path}: {key}: it has classes beyond the {len(names)} names.", "Correct the names.")
    return [
        tuple(names[numbers[label]] for label in value) if isinstance(value, tuple) else names[numbers[value]]
        for value in values
    ]


def _image_bytes(array: StoredArray) -> int:
    return int(np.prod(array.shape[1:], dtype=object)) * array.dtype.itemsize


def _as_file(image: NDArray[Any]) -> bytes:
    """Content of a PGM or PPM file of [H, W], [H, W, C] or [C, H, W]; of four channels the first three."""
    if image.ndim == 3:
        image = image if _channel_axis(image.shape) == 2 else image.transpose(1, 2, 0)
        image = image[:, :, 0] if image.shape[-1] == 1 else image[:, :, :3]
    height, width = image.shape[:2]
    kind = "P5" if image.ndim == 2 else "P6"
    highest = 65535 if image.dtype == np.uint16 else 255
    return (
        f"{kind} {width} {height} {highest}\n".encode()
        + image.astype(image.dtype.newbyteorder(">")).tobytes()
    )
