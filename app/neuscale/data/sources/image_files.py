"""A data set whose images are files in a tree: which file is which, decided by its layout's reader."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from neuscale.data.sources.decode import decode_blocks, image_size
from neuscale.data.sources.file_tree import FileTree
from neuscale.data.sources.source import Block


@dataclass(frozen=True)
class Sample:
    """An image file of a split and its label."""

    name: str
    label: int


class ImageFilesSource:
    """Image files with labels, in the order in which they are packed.

    `folder_names`: the classes' folders where those are not named after the classes.

    Every image has the size of the first one, or is made `size`×`size` pixels; DataError where
    the sizes differ and no `size` is given.
    """

    def __init__(
        self,
        tree: FileTree,
        classes: Sequence[str],
        samples: Mapping[str, Sequence[Sample]],
        held_out: str,
        size: int | None,
        folder_names: Sequence[str] | None = None,
    ) -> None:
        self.classes = classes
        self.folder_names = folder_names if folder_names is not None else classes
        self.path = tree.path
        self.held_out = held_out
        self.counts = {split: len(listed) for split, listed in samples.items()}
        self._tree = tree
        self._samples = samples
        self._size = size
        tree.check_rest({sample.name for listed in samples.values() for sample in listed})
        if size is None:
            first = samples["train"][0].name
            ((_, data),) = tree.read([first])
            width, height = image_size(tree.path, first, data)
            self.image_shape = (3, height, width)
        else:
            self.image_shape = (3, size, size)

    def files(self, split: str) -> Iterator[tuple[Sample, bytes]]:
        """The image files of a split as they are, in the order in which they are stored."""
        samples = {sample.name: sample for sample in self._samples[split]}
        for name, data in self._tree.read(samples):
            yield samples[name], data

    def blocks(self, split: str) -> Iterator[Block]:
        """The images of a split, in the order in which they are stored: uint8 [B, 3, H, W]."""
        places = {sample.name: (place, sample.label) for place, sample in enumerate(self._samples[split])}
        files = ((*places[name], name, data) for name, data in self._tree.read(places))
        return decode_blocks(self._tree.path, files, self.image_shape, self._size)
