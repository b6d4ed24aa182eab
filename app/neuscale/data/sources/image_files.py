"""Images in a tree of files: a folder, a zip or a tar."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from neuscale.data.sources.decode import image_size
from neuscale.data.sources.decode_blocks import bad_images, decode_blocks
from neuscale.data.sources.decoding import Decoding
from neuscale.data.sources.file_tree import FileTree
from neuscale.data.sources.folder_tree import FolderTree
from neuscale.data.sources.listing import Listing
from neuscale.data.sources.source import Block
from neuscale.errors import DataError
from neuscale.progress import Progress


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file of a split and its label."""

    name: str
    label: int


class ImageFilesSource:
    """Image files with labels, in the order in which they are packed.

    `folder_names`: names of the class folders, if they differ from the class names. `warnings`:
    sentences about how the files were interpreted. `label_sets`, for multi-label data: the class sets;
    a sample's label is an index into them.

    Every image has the size of `decoding`, or else that of the first image; DataError is raised if the
    sizes differ then.
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
        label_sets: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        self.classes = classes
        self.folder_names = folder_names if folder_names is not None else classes
        self.path = tree.path
        self.label_sets = label_sets
        self.warnings = [*warnings]
        self.held_out = held_out
        self.counts = {split: len(listed) for split, listed in samples.items()}
        self._tree = tree
        self._samples = dict(samples)
        self.decoding = decoding
        tree.check_rest({sample.name for listed in samples.values() for sample in listed})

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of every image. Raises DataError if the first file is not an image."""
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
        """Leave out the images that cannot be decoded; return the reasons, one line per image.

        Raises DataError if a class has no training image left.
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
        sets = self.label_sets or [(label,) for label in range(len(self.classes))]
        left = {label for sample in self._samples["train"] for label in sets[sample.label]}
        for label, name in enumerate(self.classes):
            if label not in left:
                raise DataError(
                    f"{self.path}: no image of the class '{name}' can be read.",
                    "Replace its images, or remove the class, and run the command again.",
                )
        return reasons

    @property
    def listing(self) -> Listing | None:
        """Names, sizes and times of a folder's files; None for an archive, which has a checksum."""
        return self._tree.listing

    @property
    def in_folder(self) -> bool:
        """True if the images are files in a folder on disk."""
        return isinstance(self._tree, FolderTree)

    def files(self, split: str) -> Iterator[tuple[Sample, bytes]]:
        """Samples of a split with their file contents, in the order in which they are stored."""
        samples = {sample.name: sample for sample in self._samples[split]}
        for name, data in self._tree.read(samples):
            yield samples[name], data

    def blocks(self, split: str) -> Iterator[Block]:
        """The images of a split, in the order in which they are stored: uint8 [B, 3, H, W]."""
        places = {sample.name: (place, sample.label) for place, sample in enumerate(self._samples[split])}
        files = ((*places[name], name, data) for name, data in self._tree.read(places))
        return decode_blocks(self._tree.path, files, self.image_shape, self.decoding)
