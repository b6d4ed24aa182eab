"""Hold out images of a source without splits: some of each class, chosen by a seed and the file names."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuscale.data.sources.image_files import Sample
from neuscale.data.sources.options import SourceOptions
from neuscale.errors import DataError


def split_samples(
    samples: Mapping[str, Sequence[Sample]], classes: Sequence[str] | None, options: SourceOptions, path: Path
) -> dict[str, list[Sample]]:
    """Move some of the training images of each class to "val"; the order of both is kept.

    `classes` None: images have several labels, and the choice is made over all images.

    The choice depends on the seed, the class and the file's name: the same files are chosen from a
    folder and from an archive of it. Raises DataError if a class has too few images for both splits.
    """
    held: set[str] = set()
    by_label: dict[int, list[Sample]] = {}
    for sample in samples["train"]:
        by_label.setdefault(sample.label if classes is not None else 0, []).append(sample)
    for label, members in by_label.items():
        if len(members) < 2:
            named = f"the class '{classes[label]}'" if classes is not None else "the data set"
            raise DataError(
                f"{path}: {named} has one image, which cannot be in both parts.",
                "Add images to it, or remove it.",
            )
        name = classes[label] if classes is not None else ""
        drawn = sorted(members, key=lambda each: _draw(options.split_seed or 0, name, each.name))
        held.update(sample.name for sample in _held_out(drawn, label, options))
    train = [sample for sample in samples["train"] if sample.name not in held]
    left = {sample.label for sample in train}
    if short := [name for label, name in enumerate(classes or ()) if label not in left]:
        raise DataError(
            f"{path}: of the class '{short[0]}' all images would be held out.",
            "Use a smaller share, or more folds.",
        )
    val = [sample for sample in samples["train"] if sample.name in held]
    return {**{name: list(found) for name, found in samples.items()}, "train": train, "val": val}


def _held_out(drawn: list[Sample], label: int, options: SourceOptions) -> list[Sample]:
    if options.val_share is not None:
        count = max(1, round(len(drawn) * options.val_share))
        return drawn[:count]
    assert options.folds is not None and options.fold is not None
    # Each class starts with another fold, so that the folds have about the same size.
    return [sample for place, sample in enumerate(drawn) if (place + label) % options.folds == options.fold]


def _draw(seed: int, class_name: str, name: str) -> tuple[bytes, str]:
    text = f"{seed}\0{class_name}\0{name.rpartition('/')[2]}"
    return hashlib.sha256(text.encode()).digest(), name
