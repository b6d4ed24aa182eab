"""Batches for training and evaluation, from packed arrays that live on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment import crop_flip, draw_crop_flip, normalize, resize
from neuscale.data.order import evaluation_batches, micro_batches, permutation
from neuscale.data.packed import PackedDataset
from neuscale.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """`images` float32 [B, C, S, S], normalised; `labels` int64 [B]; `samples` int64 [B]: which images."""

    images: Tensor
    labels: Tensor
    samples: Tensor


@dataclass(frozen=True)
class Share:
    """What this process computes of each global batch."""

    rank: int = 0
    processes: int = 1


class ResidentLoader:
    """Keeps a split on the device as bytes and makes batches there, without worker processes.

    On a CPU the arrays stay memory-mapped. Raises UsageError for images that are not square.
    """

    def __init__(
        self, data: PackedDataset, split: str, image_size: int | None, device: torch.device, share: Share
    ) -> None:
        meta = data.meta
        if meta.height != meta.width and image_size is None:
            raise UsageError(
                f"{meta.name}: the images are {meta.height}×{meta.width}, and the models take squares.",
                "Give a side to resize to (data.image_size=64), or prepare the data with --size.",
            )
        self.size = image_size or meta.height
        self.share = share
        self.device = device
        self.images = _tensor(data.images(split)).to(device)
        self.labels = _tensor(data.labels(split)).to(device)
        self.mean = torch.tensor(meta.mean, dtype=torch.float32, device=device)
        self.std = torch.tensor(meta.std, dtype=torch.float32, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def training(
        self,
        augment: AugmentConfig,
        seed: int,
        epoch: int,
        first_step: int,
        steps: int,
        global_batch_size: int,
        accumulation_steps: int = 1,
    ) -> Iterator[list[Batch]]:
        """This process's micro-batches of steps `first_step` … `steps` - 1 of an epoch, a list a step."""
        order = torch.from_numpy(permutation(seed, epoch, len(self))).to(self.device)
        crops = draw_crop_flip(augment, seed, epoch, len(self), self.device)
        rank, processes = self.share.rank, self.share.processes
        for step in range(first_step, steps):
            batches = []
            for positions in micro_batches(step, global_batch_size, rank, processes, accumulation_steps):
                samples = order[positions]
                images = crop_flip(self.images.index_select(0, samples), crops.at(positions))
                batches.append(self._batch(images, samples))
            yield batches

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """This process's share of the split, unaugmented; over all processes every image exactly once."""
        for positions in evaluation_batches(len(self), batch_size, self.share.rank, self.share.processes):
            samples = torch.arange(positions.start, positions.stop, device=self.device)
            yield self._batch(self.images[positions], samples)

    def _batch(self, images: Tensor, samples: Tensor) -> Batch:
        pixels = resize(normalize(images, self.mean, self.std), self.size)
        return Batch(pixels, self.labels.index_select(0, samples), samples)


def _tensor(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Tensor:
    """The array as a tensor without a copy; nothing writes to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
