"""Batches for training and evaluation; how the bytes come to the device is each loader's own matter.

Order, augmentation and shares are the same for all of them, so that their batches are equal
to the last bit.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.crops import Normalize, Rows, draw_windows, resize
from neuscale.data.augment.pipeline import draw_augmentation
from neuscale.data.formats.meta import PackedMeta
from neuscale.data.sampling import balanced_order, evaluation_batches, micro_batches, permutation
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.native_ops import native_ops


@dataclass(frozen=True)
class Batch:
    """`images` float32 [B, C, S, S], normalised; `labels` int64 [B]; `samples` int64 [B], their indices.

    `positions`: where they stand in the order of `epoch`; of an evaluation, in the split. Where
    images are mixed: `partner_labels` int64 [B], and `mix_weights` float32 [B], the weight of each
    image's own label.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    epoch: int
    positions: slice
    partner_labels: Tensor | None = None
    mix_weights: Tensor | None = None

    def split(self, count: int) -> "list[Batch]":
        """`count` equal parts of the batch, in its order; `count` divides B."""
        size = len(self.labels) // count
        return [self._part(first, first + size) for first in range(0, len(self.labels), size)]

    def _part(self, first: int, last: int) -> "Batch":
        partners, weights = self.partner_labels, self.mix_weights
        return Batch(
            self.images[first:last],
            self.labels[first:last],
            self.samples[first:last],
            self.epoch,
            slice(self.positions.start + first, self.positions.start + last),
            partners[first:last] if partners is not None else None,
            weights[first:last] if weights is not None else None,
        )


@dataclass(frozen=True)
class Request:
    """Images that are wanted: `samples` int64 [B].

    `windows`: where each is cut from its file, float64 [B, 4] (see `draw_windows`); None: not at random.
    """

    samples: NDArray[np.int64]
    windows: NDArray[np.float64] | None = None


def model_size(meta: PackedMeta, image_size: int | None) -> int:
    """The side in pixels of what a model sees of a data set, for `data.image_size`.

    Raises UsageError for images that are not square where that is not given.
    """
    if meta.height != meta.width and image_size is None:
        raise UsageError(
            f"{meta.name}: the images are {meta.height}×{meta.width}, and the models take squares.",
            "Set a side to resize to (data.image_size=64), or prepare the data with `size`.",
        )
    return image_size or meta.height


class Loader(ABC):
    """Makes the batches of a split on `device`.

    `size`: the side in pixels of what the model sees. Raises UsageError for images that are not
    square where no `image_size` is given.
    """

    kind: str  # what data.loader calls it
    sampler = "uniform"  # what data.sampler says
    interpolation, crop = "bilinear", 1.0  # and data.interpolation and data.crop

    def __init__(
        self,
        meta: PackedMeta,
        labels: NDArray[np.int64],
        image_size: int | None,
        device: torch.device,
        rank: Rank,
    ) -> None:
        self.size = model_size(meta, image_size)
        self.device, self.rank = device, rank
        self.labels = torch.from_numpy(labels).to(device)
        self.mean = torch.tensor(meta.mean, dtype=torch.float32, device=device)
        self.std = torch.tensor(meta.std, dtype=torch.float32, device=device)
        self._normalize = Normalize(self.mean, self.std, native_ops(device)[0])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the images before they are resized on the device."""

    def _resized(self, images: Tensor) -> Tensor:
        return resize(images, self.size, self.interpolation, self.crop)

    @abstractmethod
    def _read(self, requests: Iterable[Request]) -> Iterator[Rows]:
        """The bytes of each request, on the device, in the order of its samples.

        They may be overwritten once the next request is asked for.
        """

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The images of an epoch by position: int64 [N]; each once, or as often as its class needs."""
        if self.sampler == "balanced":
            return balanced_order(seed, epoch, self.labels.cpu().numpy())
        return permutation(seed, epoch, len(self))

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
        """This process's micro-batches of steps `first_step` … `steps` - 1 of an epoch, one list a step."""
        count, rank = len(self), self.rank
        order = self.order(seed, epoch)
        windows = draw_windows(augment.resized_crop, seed, epoch, count) if augment.resized_crop else None
        # A window is cut from its file at the model's own size.
        stored = self.stored_size if windows is None else (self.size, self.size)
        augmentation = draw_augmentation(augment, seed, epoch, count, global_batch_size, stored, self.device)
        partners = augmentation.mix.partner.cpu().numpy() if augmentation.mix is not None else None
        slices = [
            positions
            for step in range(first_step, steps)
            for positions in micro_batches(
                step, global_batch_size, rank.rank, rank.world_size, accumulation_steps
            )
        ]
        # Of mixed micro-batches that are being read: where in what is read their images and partners are.
        indices: deque[Tensor] = deque()

        def requests() -> Iterator[Request]:
            for positions in slices:
                needed = np.arange(positions.start, positions.stop)
                if partners is not None:
                    both = np.concatenate([needed, partners[positions]])
                    needed, index = np.unique(both, return_inverse=True)
                    indices.append(torch.from_numpy(index))
                yield Request(order[needed], windows[needed] if windows is not None else None)

        batches: list[Batch] = []
        for positions, rows in zip(slices, self._read(requests()), strict=True):
            if partners is not None:
                rows = rows[indices.popleft().to(self.device)]
            images = augmentation.images(rows, self._normalize, positions)
            samples = torch.from_numpy(order[positions]).to(self.device)
            batch = Batch(self._resized(images), self.labels[samples], samples, epoch, positions)
            if augmentation.mix is not None and partners is not None:
                other = torch.from_numpy(order[partners[positions]]).to(self.device)
                weights = augmentation.mix.weight[positions]
                batch = replace(batch, partner_labels=self.labels[other], mix_weights=weights)
            batches.append(batch)
            if len(batches) == accumulation_steps:
                yield batches
                batches = []

    def evaluation(
        self,
        batch_size: int,
        chosen: NDArray[np.int64] | None = None,
        change: Callable[[Tensor, NDArray[np.int64]], Tensor] | None = None,
    ) -> Iterator[Batch]:
        """This process's share of the split, unaugmented; over all processes every image exactly once.

        `chosen`: which images, int64 [N] without repeats; None: all. `change`: what is done to the bytes
        of images, uint8 [B, C, H, W] with their numbers [B], before they are normalised.
        """
        order = chosen if chosen is not None else np.arange(len(self))
        slices = evaluation_batches(len(order), batch_size, self.rank.rank, self.rank.world_size)
        requests = (Request(order[positions]) for positions in slices)
        for positions, rows in zip(slices, self._read(requests), strict=True):
            pixels = rows.gathered()
            if change is not None:
                pixels = change(pixels, order[positions])
            samples = torch.from_numpy(order[positions]).to(self.device)
            images = self._resized(self._normalize(pixels))
            yield Batch(images, self.labels[samples], samples, 0, positions)
