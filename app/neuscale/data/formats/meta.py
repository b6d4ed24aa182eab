"""The record of a data set, `meta.json` (its fields are defined in meta.schema.json), and its fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuscale.data.sources.decoding import Decoding
from neuscale.errors import DataError, is_refused, read_error
from neuscale.untrusted import open_regular, parse_json, read_json, read_record

FORMAT_VERSION = 1


# Every data set has these two splits, and some have a test split.
SPLITS = ("train", "val")
TEST = "test"


META_FILE = "meta.json"


# Optional files beside it: names and sizes of the original image files, and the findings of
# `neuscale data check`.
NAMES_FILE = "image_names.txt.gz"
SIZES_FILE = "image_sizes.npz"
CHECK_FILE = "check.json"


_SCHEMA = Path(__file__).with_name("meta.schema.json")


_LONGEST_REASON = 200  # characters; a message contains the value, which may be long


@dataclass(frozen=True)
class PackedMeta:
    """The record of a data set, as stored in `meta.json`.

    `mean` and `std` are those of the training split, per channel, for values in 0..1.
    `counts` maps split to number of images, `checksums` file name to sha256.
    `source` is the origin of the images: `catalog` (the entry), `kind`, `held_out` (the source's name of
    the val split), `official` (the checksum is the published one) and `files` (name, bytes, sha256, md5 of
    each). `label_sets`, for multi-label data: the class set (sorted) of each label, so that an image's label
    is an index into this list; None: the label of an image is its class.
    """

    name: str
    title: str
    classes: list[str]
    channels: int
    height: int
    width: int
    mean: list[float]
    std: list[float]
    counts: dict[str, int]
    checksums: dict[str, str]
    source: dict[str, Any]
    licence: str
    format_version: int = FORMAT_VERSION
    label_sets: list[list[int]] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def num_labels(self) -> int:
        """Number of different labels: of classes, or of class sets for multi-label data."""
        return self.num_classes if self.label_sets is None else len(self.label_sets)

    def label_name(self, label: int) -> str:
        """Name of a label: its class, or all classes of its set."""
        if self.label_sets is None:
            return self.classes[label]
        return " + ".join(self.classes[one] for one in self.label_sets[label]) or "(none)"

    def label_table(self) -> NDArray[np.bool_]:
        """The classes of each label: bool [labels, classes]."""
        table = np.zeros((self.num_labels, self.num_classes), dtype=np.bool_)
        for label, found in enumerate(self.label_sets or [[each] for each in range(self.num_classes)]):
            table[label, found] = True
        return table

    def class_counts(self, labels: NDArray[np.int64]) -> list[int]:
        """Count `labels` [N] by class; a label with several classes counts for each."""
        counts = np.bincount(labels, minlength=self.num_labels)
        if self.label_sets is None:
            return counts.tolist()
        found = np.zeros(self.num_classes, dtype=np.int64)
        for count, label_set in zip(counts, self.label_sets, strict=True):
            found[label_set] += count
        return found.tolist()

    @property
    def splits(self) -> list[str]:
        """The existing splits: train, val and perhaps test."""
        return [split for split in (*SPLITS, TEST) if split in self.counts]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that training reads: file checksums, classes, shapes, mean and std."""
        shape = [self.channels, self.height, self.width]
        content = {"mean": self.mean, "std": self.std, "shape": shape, "counts": self.counts}
        content |= {"size": self.source.get("size"), "checksums": self.checksums, "classes": self.classes}
        if self.label_sets is not None:
            content["label_sets"] = self.label_sets
        return _checksum({"version": 2, **content})

    @property
    def fingerprint_v1(self) -> str:
        """The fingerprint of an earlier version, which covered only checksums and classes."""
        return _checksum({"checksums": self.checksums, "classes": self.classes})

    def is_recorded_as(self, fingerprint: str) -> bool:
        """True if the `fingerprint` recorded by a run is that of this data set, in either version."""
        return fingerprint in (self.fingerprint, self.fingerprint_v1)

    def shape(self, split: str) -> tuple[int, int, int, int]:
        """[N, C, H, W] of a split's images."""
        return self.counts[split], self.channels, self.height, self.width

    def dumps(self) -> str:
        """The text of `meta.json`; its last field is a checksum over all others."""
        fields = {**asdict(self), "fingerprint": self.fingerprint}
        if self.label_sets is None:
            del fields["label_sets"]
        return json.dumps({**fields, "meta_checksum": _checksum(fields)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def loads(cls, text: str) -> "PackedMeta":
        """Parse the output of `dumps`. Raises ValueError with the reason if the text is not valid."""
        fields = parse_json(text)
        if not isinstance(fields, dict):
            raise ValueError("it holds no fields")
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"its format is {version!r}, this program reads format {FORMAT_VERSION}")
        checksum = fields.pop("meta_checksum", None)
        if checksum != _checksum(fields):
            raise ValueError("it was changed after it was written")
        if (error := next(_validator().iter_errors(fields), None)) is not None:
            raise ValueError(f"{'.'.join(map(str, error.absolute_path))}: {error.message[:_LONGEST_REASON]}")
        fingerprint = fields.pop("fingerprint")
        meta = cls(**fields)
        numbers = meta.mean + meta.std
        if not len(meta.mean) == len(meta.std) == meta.channels or not all(map(isfinite, numbers)):
            raise ValueError("mean and std: there must be a number for each channel")
        if not all(
            labels == sorted(set(labels)) and all(0 <= label < meta.num_classes for label in labels)
            for labels in meta.label_sets or ()
        ):
            raise ValueError("label_sets: one is not of these classes, sorted")
        Decoding.recorded(meta.source, None)
        if not meta.is_recorded_as(fingerprint):
            raise ValueError("its fingerprint is of other data")
        return meta


@dataclass(frozen=True)
class RenormalisedMeta(PackedMeta):
    """A record with another mean and std for normalisation; the fingerprint is that of record `own`."""

    own: PackedMeta | None = None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the data set as it was prepared."""
        assert self.own is not None
        return self.own.fingerprint


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(_SCHEMA.read_text()))


def _checksum(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def file_sizes(folder: Path, meta: PackedMeta) -> dict[str, NDArray[np.int32]] | None:
    """Width and height of the original image files by split, int32 [N, 2] each; None if not known."""
    try:
        with open_regular(folder / SIZES_FILE) as stream, np.load(stream, allow_pickle=False) as stored:
            sizes = {split: stored[split] for split in meta.splits}
    except Exception:  # another version, or damaged: numpy can raise almost any error
        return None
    fits = all(found.shape == (meta.counts[split], 2) for split, found in sizes.items())
    return sizes if fits and all(found.dtype == np.int32 for found in sizes.values()) else None


def kept_check(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Findings of `neuscale data check` stored in a data set's folder; None if there are none for it."""
    try:
        found = read_json(folder / CHECK_FILE)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.pop("fingerprint", None) != fingerprint:
        return None
    return found


def read_meta(folder: Path, remedy: str) -> PackedMeta:
    """Read the record in `folder`. Raises DataError, with `remedy` as advice, if it cannot be read."""
    path = folder / META_FILE
    try:
        return PackedMeta.loads(read_record(path))
    except FileNotFoundError:
        reason = "it is missing"
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, OSError) and is_refused(error):
            raise read_error(error, path) from None
        reason = f"cannot be read ({error})"
    raise DataError(f"{path}: {reason}.", f"Run '{remedy}'.") from None
