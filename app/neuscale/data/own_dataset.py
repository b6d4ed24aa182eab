"""A data set from user code: pairs of image and label, packed like a folder of images."""

import hashlib
import inspect
import tempfile
from collections.abc import Iterable, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neuscale.data.formats.meta import META_FILE, TEST
from neuscale.data.formats.packed import PackedDataset, packed_path
from neuscale.data.prepare import prepare
from neuscale.errors import DataError, UsageError
from neuscale.fs import folder_lock, write_atomically
from neuscale.progress import Progress
from neuscale.project.targets import TARGET, import_target, make, words_of
from neuscale.protocols import DataSource

_FIELD = "data.dataset"


def own_dataset(name: str, spec: dict[str, Any], progress: Progress) -> PackedDataset:
    """Open the data set `name`; create it with the target in `spec` if it does not exist yet.

    The target is called with `split` "train" and "val", and "test" if its attribute `has_test` is true. Each
    time it returns an iterable of (image, label): a PIL image, or uint8 [H, W] or [H, W, 3]; the label as
    text, or as a number, an index into the iterable's `classes` if it has them. If it has a length, that many
    pairs are read. Raises UsageError for anything else, DataError if the existing data set was made by other
    code or arguments.
    """
    record = {"dataset": spec, "code_sha256": _code_of(spec)}
    folder = packed_path(name)
    if folder.is_dir():
        return _checked(folder, record)
    with folder_lock(folder.with_name(f"{name}-own"), f"making {name}", progress):
        if folder.is_dir():
            return _checked(folder, record)
        with tempfile.TemporaryDirectory(prefix="neuscale-") as place:
            for split in _splits(spec):
                _write_split(Path(place) / name / split, spec, split, progress)
            data = prepare("image_folder", source=Path(place) / name, save_as=name, progress=progress)
        source = {n: v for n, v in data.meta.source.items() if n not in ("place", "listing", "files")}
        source |= {"kind": "own", "given": str(spec[TARGET]), "files": [], **record}
        write_atomically(data.folder / META_FILE, replace(data.meta, source=source).dumps())
    return PackedDataset.open(folder)


def _checked(folder: Path, record: dict[str, Any]) -> PackedDataset:
    data = PackedDataset.open(folder)
    for name, what in (("dataset", "other arguments"), ("code_sha256", "other code")):
        if data.meta.source.get(name) != record[name]:
            raise DataError(
                f"{folder}: was made by {what} than {_FIELD} has now.",
                "Give this data another name (data.name=NAME), or remove that folder.",
            )
    return data


def _code_of(spec: dict[str, Any]) -> str | None:
    """SHA-256 of the source file of the target; None if it has none."""
    found = import_target(str(spec.get(TARGET)), _FIELD)
    try:
        file = inspect.getsourcefile(found)
    except TypeError:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def _splits(spec: dict[str, Any]) -> list[str]:
    found = import_target(str(spec[TARGET]), _FIELD)
    if "split" not in inspect.signature(found).parameters:
        raise UsageError(
            f"{_FIELD}={spec[TARGET]}: it has no argument `split`.", 'It is asked for "train" and for "val".'
        )
    return ["train", "val", *([TEST] if getattr(found, "has_test", False) else [])]


def _write_split(folder: Path, spec: dict[str, Any], split: str, progress: Progress) -> None:
    made: DataSource = make(spec, _FIELD, {"split": split})
    if not isinstance(made, Iterable) and not hasattr(made, "__getitem__"):
        raise UsageError(f"{_FIELD}: gives {type(made).__name__} for `split` {split}, nothing to go through.")
    classes = getattr(made, "classes", None)
    length = len(made) if isinstance(made, Sized) else None
    count = 0
    with progress.task(f"making {split}", length, "img") as task:
        pairs = iter(made)
        while True:
            try:
                pair = next(pairs, None)
            except Exception as error:
                raise UsageError(f"{_FIELD}: {split}, image {count}: {words_of(error)}.") from error
            if pair is None or (length is not None and count == length):
                break
            _write(folder, f"{_FIELD}: {split}, image {count}", pair, classes, count)
            count += 1
            task.advance()
    if count == 0 or (length is not None and count != length):
        raise UsageError(
            f"{_FIELD}: {split} ended after {count:,} images{f' of {length:,}' if length else ''}.",
            "Give pairs of image and label.",
        )


def _write(folder: Path, where: str, pair: Any, classes: Any, number: int) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UsageError(f"{where}: {type(pair).__name__} is no pair of image and label.")
    image, label = pair
    if not isinstance(image, Image.Image):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
            raise UsageError(
                f"{where}: {pixels.dtype} {list(pixels.shape)} is no image.",
                "Give uint8 [H, W] or [H, W, 3].",
            )
        image = Image.fromarray(pixels)
    if isinstance(label, bool) or not isinstance(label, str | int | np.integer):
        raise UsageError(f"{where}: {type(label).__name__} is no label.", "Give a number or a text.")
    if not isinstance(label, str):
        if classes is not None and not 0 <= int(label) < len(classes):
            raise UsageError(f"{where}: label {label} of {len(classes)} classes.")
        label = str(classes[int(label)]) if classes is not None else f"{int(label):04}"
    if not label or "/" in label or label.startswith("."):
        raise UsageError(f"{where}: '{label}' cannot be the name of a class.", "Use another name.")
    (folder / label).mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(folder / label / f"{number:08}.png", compress_level=1)
