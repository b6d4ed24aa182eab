"""Checks of a data set before training: duplicates, odd images, class imbalance and wrong labels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from neuscale.data.datasets import Dataset
from neuscale.data.duplicates import Prints, equal_images, prints_of, similar_images
from neuscale.data.formats.image_list import ListedDataset
from neuscale.data.formats.meta import CHECK_FILE, file_sizes
from neuscale.errors import UsageError
from neuscale.evaluation.mislabelled import suspects
from neuscale.fs import write_atomically
from neuscale.inference.evaluate_run import evaluation_loader
from neuscale.inference.predict import predict_split
from neuscale.inference.restore import restore
from neuscale.progress import Progress
from neuscale.runs.folder import RunFolder
from neuscale.units import now

# Thresholds for gray values from 0 to 255.
DARKEST, BRIGHTEST, FLATTEST = 8.0, 247.0, 2.0

# A file is tiny if a side was enlarged more than twice or is shorter than 8 pixels, and huge if it has more
# than 16 times the pixels of the median file.
_ENLARGED, _SHORTEST, _TIMES_THE_MEDIAN = 2, 8, 16


@dataclass(frozen=True)
class CheckedImage:
    """An image: its split, its index in the split, its file name, and its class."""

    split: str
    sample: int
    name: str
    label: str


@dataclass(frozen=True)
class SuspectImage:
    """A probably mislabelled image; `margin`: the suggested class's probability minus its label's."""

    image: CheckedImage
    suggested: str
    margin: float


@dataclass(frozen=True)
class DataCheck:
    """Findings in a data set. `counts`: images by class and split; `equal`, `similar`: groups of images.

    `tiny`, `huge`: by the sizes of the original files; None if these are not known, as for arrays. `run`:
    the run whose model searched for wrong labels; None if there was no search.
    """

    name: str
    fingerprint: str
    made: str
    counts: dict[str, dict[str, int]]
    equal: list[list[CheckedImage]]
    similar: list[list[CheckedImage]]
    dark: list[CheckedImage]
    bright: list[CheckedImage]
    flat: list[CheckedImage]
    tiny: list[CheckedImage] | None
    huge: list[CheckedImage] | None
    mislabelled: list[SuspectImage]
    run: str | None = None

    @property
    def imbalance(self) -> float:
        """Ratio of training images in the largest class to those in the smallest."""
        of_train = [count.get("train", 0) for count in self.counts.values()]
        return max(of_train) / max(1, min(of_train))

    def summary(self) -> dict[str, Any]:
        """Numbers of findings, for the manifest of a run that trains on the data."""
        groups = self.equal + self.similar
        return {
            "made": self.made,
            "equal_groups": len(self.equal),
            "similar_groups": len(self.similar),
            "groups_across_splits": sum(across_splits(group) for group in groups),
            "groups_in_several_classes": sum(in_several_classes(group) for group in groups),
            "dark": len(self.dark),
            "bright": len(self.bright),
            "flat": len(self.flat),
            "tiny": len(self.tiny) if self.tiny is not None else None,
            "huge": len(self.huge) if self.huge is not None else None,
            "imbalance": round(self.imbalance, 4),
            "mislabelled": len(self.mislabelled) if self.run is not None else None,
            "run": self.run,
        }


def across_splits(group: Sequence[CheckedImage]) -> bool:
    """True for a group with images in several splits: the model is evaluated on training images."""
    return len({image.split for image in group}) > 1


def in_several_classes(group: Sequence[CheckedImage]) -> bool:
    """True for a group with images in several classes, of which at most one is right."""
    return len({image.label for image in group}) > 1


def check_data(data: Dataset, run: RunFolder | None, progress: Progress) -> DataCheck:
    """Check every image of `data` and, with the best weights of `run`, its labels.

    The model fits the labels of its own training images too well, the more so the longer it was trained, and
    finds fewer errors there. Raises DataError for an image that cannot be read, UsageError for a run with
    other classes, and for a run with multi-label data.
    """
    if run is not None and data.meta.label_sets is not None:
        raise UsageError(
            f"{data.meta.name}: an image may have several labels, and `run` looks for wrong single ones.",
            "Check the data without it.",
        )
    prints = prints_of(data, progress)
    images = _images(data, prints)
    dark = (prints.mean < DARKEST) & (prints.deviation < 2 * DARKEST)
    bright = (prints.mean > BRIGHTEST) & (prints.deviation < 2 * DARKEST)
    flat = (prints.deviation < FLATTEST) & ~dark & ~bright
    tiny, huge = _of_odd_size(data, images)
    counts = {split: data.class_counts(split) for split in data.meta.splits}
    return DataCheck(
        data.meta.name,
        data.meta.fingerprint,
        now(),
        {name: {split: counts[split][i] for split in counts} for i, name in enumerate(data.meta.classes)},
        [[images[i] for i in group] for group in equal_images(prints)],
        [[images[i] for i in group] for group in similar_images(prints)],
        [images[i] for i in np.flatnonzero(dark)],
        [images[i] for i in np.flatnonzero(bright)],
        [images[i] for i in np.flatnonzero(flat)],
        tiny,
        huge,
        _suspects(data, run, progress) if run is not None else [],
        run.name if run is not None else None,
    )


def store_check(data: Dataset, check: DataCheck, progress: Progress) -> None:
    """Store the summary beside the data set, for the runs that train on it."""
    try:
        content = {"fingerprint": check.fingerprint, **check.summary()}
        write_atomically(data.folder / CHECK_FILE, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        progress.warning(f"{data.folder}: the findings are not kept there ({error.strerror})")


def as_json(check: DataCheck) -> dict[str, Any]:
    """All findings as JSON values."""
    return {**asdict(check), "imbalance": check.imbalance, "summary": check.summary()}


def image_names(data: Dataset, split: str) -> list[str]:
    """File name of each image of a split, if known, else its split and index."""
    if isinstance(data, ListedDataset):
        return [file.name for file in data.files(split)]
    return data.names(split) or [f"{split} {place}" for place in range(data.meta.counts[split])]


def _images(data: Dataset, prints: Prints) -> list[CheckedImage]:
    splits = data.meta.splits
    names: Mapping[str, list[str]] = {split: image_names(data, split) for split in splits}
    return [
        CheckedImage(splits[split], int(sample), names[splits[split]][sample], data.meta.label_name(label))
        for split, sample, label in zip(prints.splits, prints.samples, prints.labels, strict=True)
    ]


def _of_odd_size(
    data: Dataset, images: Sequence[CheckedImage]
) -> tuple[list[CheckedImage] | None, list[CheckedImage] | None]:
    """The images whose files are tiny, and those whose files are huge."""
    known = file_sizes(data.folder, data.meta)
    if known is None:
        return None, None
    sizes = np.concatenate([known[split] for split in data.meta.splits]).astype(np.int64)
    wanted = np.array([data.meta.width, data.meta.height])
    tiny = ((sizes * _ENLARGED < wanted) | (sizes < _SHORTEST)).any(axis=1)
    pixels = sizes.prod(axis=1)
    huge = pixels > _TIMES_THE_MEDIAN * np.median(pixels)
    return [images[int(i)] for i in np.flatnonzero(tiny)], [images[int(i)] for i in np.flatnonzero(huge)]


def _suspects(data: Dataset, run: RunFolder, progress: Progress) -> list[SuspectImage]:
    restored = restore(run, "best", "auto", None, progress).with_data(data)
    found = []
    for split in data.meta.splits:
        predicted = predict_split(restored, evaluation_loader(restored, split), progress)
        names = image_names(data, split)
        for suspect in suspects(predicted.probabilities, predicted.labels):
            label = data.meta.classes[int(predicted.labels[suspect.sample])]
            image = CheckedImage(split, suspect.sample, names[suspect.sample], label)
            found.append(SuspectImage(image, data.meta.classes[suspect.suggested], round(suspect.margin, 6)))
    return sorted(found, key=lambda suspect: -suspect.margin)
