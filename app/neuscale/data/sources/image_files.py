"""Images in a tree of files: a folder, a zip or a tar."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from neuscale.data.sources.decode import image_size
from neuscale.data.sources.decode_blocks import bad_images, decode_blocks
from neuscale.data.sources.decoding import Decoding
from neuscale.data.sources.file_tree import GET_ANEW, FileTree
from neuscale.data.sources.folder_tree import FolderTree
from neuscale.data.sources.listing import Listing
from neuscale.data.sources.source import Block
from neuscale.data.sources.tar_tree import COMPRESSIONS, TarTree
from neuscale.data.sources.zip_tree import ZipTree
from neuscale.errors import DataError, is_refused, read_error
from neuscale.progress import Progress
from neuscale.untrusted import open_regular


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file of a split and its label."""

    name: str
    label: int


class ImageFilesSource:
    """Image files with labels, in the order in which they are packed.

    `folder_names`: the classes' folders where those are not named after the classes. `warnings`:
    sentences on how the files were taken; what decoding notices is added once they are decoded.

    Every image has the size of the first one, or that of `decoding`; DataError where the sizes differ
    and it has none.
    """

    def __init__(
        self,
        tree: FileTree,
        classes: Sequence[str],
        samples: Mapping[str, Sequence[Sample]],
        held_out: str,
        decoding: Decoding,
        folder_names: Sequence[str] | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.classes = classes
        self.folder_names = folder_names if folder_names is not None else classes
        self.path = tree.path
        self.warnings = [*warnings]
        self.held_out = held_out
        self.counts = {split: len(listed) for split, listed in samples.items()}
        self._tree = tree
        self._samples = dict(samples)
        self.decoding = decoding
        tree.check_rest({sample.name for listed in samples.values() for sample in listed})

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of every image. Raises DataError where the first one is no image."""
        if self.decoding.size is not None:
            width, height = self.decoding.size
            return (3, height, width)
        first = self._samples["train"][0].name
        ((_, data),) = self._tree.read([first])
        width, height = image_size(self.path, first, data)
        return (3, height, width)

    def samples(self, split: str) -> Sequence[Sample]:
        """The image files of a split, in the order in which they are packed."""
        return self._samples[split]

    def leave_out_bad(self, progress: Progress) -> list[str]:
        """Leave out the images that cannot be decoded; returns why, a line for each.

        Raises DataError where a class has no training image left.
        """
        reasons: list[str] = []
        for split, samples in self._samples.items():
            with progress.task(f"checking {split}", len(samples), "img") as task:
                bad = set()
                for name, reason in bad_images(self.path, self.files(split), self.decoding, task):
                    bad.add(name)
                    reasons.append(reason)
            self._samples[split] = [sample for sample in samples if sample.name not in bad]
            self.counts[split] = len(self._samples[split])
        left = {sample.label for sample in self._samples["train"]}
        for label, name in enumerate(self.classes):
            if label not in left:
                raise DataError(
                    f"{self.path}: no image of the class '{name}' can be read.",
                    "Replace its images, or remove the class, and run the command again.",
                )
        return reasons

    @property
    def listing(self) -> Listing | None:
        """The names, sizes and times of a folder's files; None of an archive, which has a checksum."""
        return self._tree.listing if isinstance(self._tree, FolderTree) else None

    def files(self, split: str) -> Iterator[tuple[Sample, bytes]]:
        """The image files of a split as they are, in the order in which they are stored."""
        samples = {sample.name: sample for sample in self._samples[split]}
        for name, data in self._tree.read(samples):
            yield samples[name], data

    def blocks(self, split: str) -> Iterator[Block]:
        """The images of a split, in the order in which they are stored: uint8 [B, 3, H, W]."""
        places = {sample.name: (place, sample.label) for place, sample in enumerate(self._samples[split])}
        files = ((*places[name], name, data) for name, data in self._tree.read(places))
        return decode_blocks(self._tree.path, files, self.image_shape, self.decoding)


def open_tree(path: Path, encoding: str | None = None) -> FileTree:
    """The tree in a folder, a .zip or a .tar, compressed or not, told apart by content.

    `encoding`: of an archive's names, where it does not say. Raises DataError where it is none of these.
    """
    if path.is_dir():
        return FolderTree(path)
    try:
        with open_regular(path, limit=sys.maxsize, links=True) as stream:
            head = stream.read(512)
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file or folder.", "Give the path of a folder or archive."
        ) from None
    except OSError as error:
        if is_refused(error):
            raise read_error(error, path) from None
        raise DataError(f"{path}: {error.strerror}.", "Give the path of a folder or archive.") from None
    if not head:
        raise DataError(f"{path}: the file is empty.", GET_ANEW)
    if head.startswith(b"PK"):
        return ZipTree(path, encoding)
    if head.startswith(tuple(COMPRESSIONS)) or head[257:262] == b"ustar":
        return TarTree(path, encoding)
    raise DataError(
        f"{path}: neither a folder nor a .zip or .tar archive (.gz, .bz2, .xz), or damaged at its beginning.",
        "Give one of these.",
    )
