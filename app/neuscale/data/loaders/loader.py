"""Base class of the loaders: batches for training and evaluation.

Loaders differ in how bytes get to the device. Order, augmentation and shares are the same for
all of them, so their batches are bitwise equal.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment.crops import Normalize, Rows, draw_windows, resize
from neuscale.data.augment.mixing import mix_partners
from neuscale.data.augment.pipeline import Augmentation, draw_augmentation, own_function
from neuscale.data.formats.meta import PackedMeta
from neuscale.data.sampling import balanced_order, evaluation_batches, micro_batches, permutation
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.native_ops import native_ops

_DRAWN_TOGETHER = 16384


@dataclass(frozen=True)
class Batch:
    """`images` float32 [B, C, S, S], normalised; `labels` int64 [B]; `samples` int64 [B], their indices.

    `positions`: their positions in the order of `epoch`, or for an evaluation in the split. If
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
        """Split the batch into `count` equal parts, in order; `count` must divide B."""
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
    """Request for images: `samples` int64 [B].

    `windows`: random crop of each image file, float64 [B, 4] (see `draw_windows`); None: no random crop.
    """

    samples: NDArray[np.int64]
    windows: NDArray[np.float64] | None = None


def model_size(meta: PackedMeta, image_size: int | None) -> int:
    """Side in pixels of the model's input for a data set and `data.image_size`.

    Raises UsageError if the images are not square and `image_size` is None.
    """
    if meta.height != meta.width and image_size is None:
        raise UsageError(
            f"{meta.name}: the images are {meta.height}×{meta.width}, and the models take squares.",
            "Set a side to resize to (data.image_size=64), or prepare the data with `size`.",
        )
    return image_size or meta.height


class Loader(ABC):
    """Builds the batches of a split on `device`.

    `size`: side in pixels of the model's input. Raises UsageError if the images are not square and
    `image_size` is None.
    """

    kind: str  # its name in data.loader
    sampler = "uniform"  # data.sampler
    interpolation, crop = "bilinear", 1.0  # data.interpolation and data.crop

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
        """Yield the bytes of each request, on the device, in the order of its samples.

        They may be overwritten when the next item is requested.
        """

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Index of the image at each position of an epoch, int64 [N]: a permutation, or class-balanced."""
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
        """This rank's micro-batches of steps `first_step` … `steps` - 1 of an epoch, one list per step."""
        rank, order = self.rank, self.order(seed, epoch)
        # Random crops of files are decoded at the model's input size.
        stored = (self.size, self.size) if augment.resized_crop else self.stored_size
        mixes, own = bool(augment.mixup_alpha or augment.cutmix_alpha), own_function(augment)

        def span_of(positions: slice) -> slice:
            """The positions for which random choices are drawn together, `positions` among them."""
            if (
                global_batch_size <= _DRAWN_TOGETHER
            ):  # several steps, since a draw costs more than its numbers
                length = _DRAWN_TOGETHER // global_batch_size * global_batch_size
            elif mixes:  # a partner may be anywhere in the global batch
                length = global_batch_size
            else:
                return positions
            start = positions.start - positions.start % length
            return slice(start, min(start + length, max(len(self), positions.stop)))

        def slices() -> Iterator[slice]:
            for step in range(first_step, steps):
                yield from micro_batches(
                    step, global_batch_size, rank.rank, rank.world_size, accumulation_steps
                )

        # For mixed micro-batches being read: indices of their images and partners in the rows that are read.
        indices: deque[Tensor] = deque()
        drawn: list[Any] = []  # span and windows

        def requests() -> Iterator[Request]:
            for positions in slices():
                needed = np.arange(positions.start, positions.stop)
                if mixes:
                    partners = mix_partners(seed, epoch, positions, global_batch_size)
                    needed, index = np.unique(np.concatenate([needed, partners]), return_inverse=True)
                    indices.append(torch.from_numpy(index))
                windows = None
                if augment.resized_crop:
                    span = span_of(positions)
                    if not drawn or drawn[0] != span:
                        drawn[:] = [span, draw_windows(augment.resized_crop, seed, epoch, span)]
                    windows = drawn[1][needed - span.start]
                yield Request(order[needed], windows)

        batches: list[Batch] = []
        augmentation: Augmentation | None = None
        for positions, rows in zip(slices(), self._read(requests()), strict=True):
            span = span_of(positions)
            if augmentation is None or augmentation.first != span.start:
                augmentation = draw_augmentation(
                    augment, seed, epoch, span, global_batch_size, stored, self.device, own
                )
            if mixes:
                rows = rows[indices.popleft().to(self.device)]
            images = augmentation.images(rows, self._normalize, positions)
            samples = torch.from_numpy(order[positions]).to(self.device)
            batch = Batch(self._resized(images), self.labels[samples], samples, epoch, positions)
            if augmentation.mix is not None:
                mix = augmentation.mix.at(augmentation.index(positions))
                other = torch.from_numpy(order[mix.partner.cpu().numpy()]).to(self.device)
                batch = replace(batch, partner_labels=self.labels[other], mix_weights=mix.weight)
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
        """This rank's share of the split, unaugmented; over all ranks every image exactly once.

        `chosen`: indices of images, int64 [N] without repeats; None: all. `change`: function applied to
        bytes, uint8 [B, C, H, W], and their indices [B], before they are normalised.
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
