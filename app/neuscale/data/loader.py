"""Batches for training and evaluation, from packed arrays that live on the device."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment import normalize, resize
from neuscale.data.augmentation import draw_augmentation
from neuscale.data.order import evaluation_batches, micro_batches, permutation
from neuscale.data.packed import PackedDataset
from neuscale.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """`images` float32 [B, C, S, S], normalised; `labels` int64 [B]; `samples` int64 [B]: which images.

    Where images are mixed: `partner_labels` int64 [B], and `shares` float32 [B], how much
    of each image is its own.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    partner_labels: Tensor | None = None
    shares: Tensor | None = None


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
        size = (self.images.shape[2], self.images.shape[3])
        augmentation = draw_augmentation(
            augment, seed, epoch, len(self), global_batch_size, size, self.device
        )

        def pixels(positions: Tensor) -> Tensor:
            return self.images.index_select(0, order[positions])

        rank, processes = self.share.rank, self.share.processes
        for step in range(first_step, steps):
            batches = []
            for part in micro_batches(step, global_batch_size, rank, processes, accumulation_steps):
                positions = torch.arange(part.start, part.stop, device=self.device)
                images = resize(augmentation.images(pixels, self._normalize, positions), self.size)
                samples = order[positions]
                partner_labels = shares = None
                if augmentation.mix is not None:
                    partner_labels = self.labels[order[augmentation.mix.partner[positions]]]
                    shares = augmentation.mix.share[positions]
                batches.append(Batch(images, self.labels[samples], samples, partner_labels, shares))
            yield batches

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """This process's share of the split, unaugmented; over all processes every image exactly once."""
        for positions in evaluation_batches(len(self), batch_size, self.share.rank, self.share.processes):
            samples = torch.arange(positions.start, positions.stop, device=self.device)
            images = resize(self._normalize(self.images[positions]), self.size)
            yield Batch(images, self.labels[positions], samples)

    def _normalize(self, images: Tensor) -> Tensor:
        return normalize(images, self.mean, self.std)


def _tensor(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> Tensor:
    """The array as a tensor without a copy; nothing writes to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
