"""Tiny ImageNet's official layout, as a zip or unpacked.

[tiny-imagenet-200/]wnids.txt                  a WordNet id per class
[tiny-imagenet-200/]words.txt                  WordNet id, tab, names separated by commas
[tiny-imagenet-200/]train/<wnid>/images/*.JPEG
[tiny-imagenet-200/]val/images/*.JPEG
[tiny-imagenet-200/]val/val_annotations.txt    file, tab, WordNet id, tab, box
"""

from collections import Counter
from pathlib import Path

from neuscale.data.sources.decode import is_image
from neuscale.data.sources.file_tree import FileTree
from neuscale.data.sources.image_files import ImageFilesSource, Sample
from neuscale.data.sources.open_images import open_tree
from neuscale.data.sources.options import USUAL, SourceOptions
from neuscale.errors import DataError
from neuscale.progress import Progress, Silent

_SILENT = Silent()

_FIX = "Get the official archive anew and run the command again."


def open_tiny_imagenet(
    path: Path, options: SourceOptions = USUAL, progress: Progress = _SILENT
) -> ImageFilesSource:
    """Open the images of a zip or folder in the official layout, or of a part of it.

    Classes are sorted by WordNet id and have their first name in words.txt. Raises DataError with file
    and line if annotations and images do not fit together.
    """
    tree = open_tree(path, options.encoding, progress)
    top = _top(tree)
    wnids = sorted(_lines(tree, f"{top}wnids.txt").values())
    if len(set(wnids)) != len(wnids) or not wnids:
        raise DataError(f"{path}: {top}wnids.txt: it is empty or names a class twice.", _FIX)
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    samples = {
        "train": _training_samples(tree, f"{top}train/", labels),
        "val": _validation_samples(tree, f"{top}val/", labels),
    }
    names = _class_names(tree, f"{top}words.txt", wnids)
    return ImageFilesSource(
        tree, names, samples, "val", options.decoding, folder_names=wnids, warnings=tree.warnings
    )


def _top(tree: FileTree) -> str:
    found = [name for name in tree.files if name.rpartition("/")[2] == "wnids.txt" and name.count("/") <= 1]
    if len(found) != 1:
        raise DataError(
            f"{tree.path}: there is no wnids.txt in it, so this is not Tiny ImageNet's layout.",
            "Give the official zip or its unpacked folder; a tree of train/<class>/* and val/<class>/* "
            "is an image_folder: 'neuscale data prepare image_folder --source PATH'.",
        )
    return found[0].removesuffix("wnids.txt")


def _lines(tree: FileTree, name: str) -> dict[int, str]:
    """Line number → line, without empty lines."""
    if name not in tree.files:
        raise DataError(f"{tree.path}: {name}: the file is missing.", _FIX)
    ((_, data),) = tree.read([name])
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{tree.path}: {name}: not a text ({error}).", _FIX) from None
    return {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}


def _class_names(tree: FileTree, words: str, wnids: list[str]) -> list[str]:
    """First name of each class, with its WordNet id if two classes share the name."""
    wanted = set(wnids)
    names = {}
    for line in _lines(tree, words).values():
        wnid, _, synonyms = line.partition("\t")
        if wnid in wanted:
            names[wnid] = synonyms.partition(",")[0].strip()
    chosen = [names.get(wnid) or wnid for wnid in wnids]
    shared = Counter(chosen)
    return [
        f"{name} ({wnid})" if shared[name] > 1 else name for name, wnid in zip(chosen, wnids, strict=True)
    ]


def _training_samples(tree: FileTree, train: str, labels: dict[str, int]) -> list[Sample]:
    found: dict[str, list[str]] = {wnid: [] for wnid in labels}
    folders = {name.removeprefix(train) for name in tree.folders if name.startswith(train)}
    if unknown := sorted(name for name in folders if "/" not in name and name not in labels):
        raise DataError(f"{tree.path}: {train}{unknown[0]}: this class is not in wnids.txt.", _FIX)
    for name in sorted(tree.files):
        if name.startswith(train) and is_image(name):
            wnid, slash, _ = name.removeprefix(train).partition("/")
            if not slash:
                raise DataError(f"{tree.path}: {name}: this image lies in no class folder.", _FIX)
            found[wnid].append(name)
    for wnid, files in found.items():
        if not files:
            raise DataError(f"{tree.path}: {train}{wnid}: there is no image of this class.", _FIX)
    return [Sample(name, labels[wnid]) for wnid, files in found.items() for name in files]


def _validation_samples(tree: FileTree, val: str, labels: dict[str, int]) -> list[Sample]:
    annotations = f"{val}val_annotations.txt"
    samples: dict[str, Sample] = {}
    for number, line in _lines(tree, annotations).items():
        where = f"{tree.path}: {annotations}, line {number}"
        fields = line.split("\t")
        if len(fields) < 2:
            raise DataError(f"{where}: no tab between file and class.", _FIX)
        name, wnid = f"{val}images/{fields[0]}", fields[1]
        if name not in tree.files:
            raise DataError(f"{where}: the image '{fields[0]}' is missing.", _FIX)
        if wnid not in labels:
            raise DataError(f"{where}: the class '{wnid}' is not in wnids.txt.", _FIX)
        if name in samples:
            raise DataError(f"{where}: the image '{fields[0]}' is annotated twice.", _FIX)
        samples[name] = Sample(name, labels[wnid])
    for name in sorted(tree.files):
        if name.startswith(val) and is_image(name) and name not in samples:
            raise DataError(f"{tree.path}: {name}: this image has no line in {annotations}.", _FIX)
    if not samples:
        raise DataError(f"{tree.path}: {annotations}: it is empty.", _FIX)
    return sorted(samples.values(), key=lambda sample: (sample.label, sample.name))
