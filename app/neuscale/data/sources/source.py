"""Interface of all readers of data sets: classes, image shape and blocks of images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Block(NamedTuple):
    """Some images of a split, each with its index in the split (`places`).

    Indices need not be in order: an archive is read in storage order, but the packed arrays
    are the same for a folder, a zip and a tar of it.
    """

    places: NDArray[np.int64]  # [B], each of 0..N-1 exactly once over all blocks of a split
    images: NDArray[np.uint8]  # [B, C, H, W]
    labels: NDArray[np.int64]  # [B], 0..classes-1
    sizes: NDArray[np.int32] | None = None  # [B, 2], width and height of the files; None for arrays


class Source(Protocol):
    """An opened data set whose contents are listed and ready to be decoded."""

    @property
    def classes(self) -> Sequence[str]:
        """The class names; a label is an index into them."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of every image."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of images in "train", "val" and perhaps "test"."""

    @property
    def held_out(self) -> str:
        """The source's name for the split that is "val" here."""

    def blocks(self, split: str) -> Iterator[Block]:
        """The images of a split, a bounded number at a time. Raises DataError if they cannot be read."""
