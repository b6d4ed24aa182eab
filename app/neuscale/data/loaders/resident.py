"""Loader for images that fit into device memory and stay there as bytes."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuscale.data.augment.crops import Rows
from neuscale.data.formats.packed import PackedDataset
from neuscale.data.loaders.loader import Loader, Request
from neuscale.distributed.rank import Rank


class ResidentLoader(Loader):
    """Keeps a split on the device as bytes and builds batches there, without worker processes.

    On a CPU the arrays stay memory-mapped.
    """

    kind = "resident"

    def __init__(
        self, data: PackedDataset, split: str, image_size: int | None, device: torch.device, rank: Rank
    ) -> None:
        super().__init__(data.meta, data.labels(split), image_size, device, rank)
        self.images = as_tensor(data.images(split)).to(device)

    @property
    def stored_size(self) -> tuple[int, int]:
        """See Loader."""
        return self.images.shape[2], self.images.shape[3]

    def _read(self, requests: Iterable[Request]) -> Iterator[Rows]:
        for request in requests:
            yield Rows(self.images, torch.from_numpy(request.samples).to(self.device))


def as_tensor(array: NDArray[Any]) -> Tensor:
    """The array as a tensor without a copy; must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
