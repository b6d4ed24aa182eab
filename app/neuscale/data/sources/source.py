"""The interface of every reader of a data set: its classes, its shape and blocks of images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Block(NamedTuple):
    """Some images of a split, each with its place in it.

    Places need not be in order: an archive is read in the order in which it is stored, and
    yet the packed arrays are the same for a folder, a zip and a tar of it.
    """

    places: NDArray[np.int64]  # [B], each of 0..N-1 exactly once over all blocks of a split
    images: NDArray[np.uint8]  # [B, C, H, W]
    labels: NDArray[np.int64]  # [B], 0..classes-1
    sizes: NDArray[np.int32] | None = None  # [B, 2], width and height of the files; None of arrays


class Source(Protocol):
    """A data set as published, opened and with its contents listed, ready to be decoded."""

    @property
    def classes(self) -> Sequence[str]:
        """The class names; a label is an index into them."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of every image."""

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of images in "train", in "val" and perhaps in "test"."""

    @property
    def held_out(self) -> str:
        """The source's name of the split that is "val" here."""

    def blocks(self, split: str) -> Iterator[Block]:
        """The images of a split, a bounded number at a time; DataError where they cannot be read."""
