"""Batches for training and evaluation; how the bytes come to the device is each loader's own matter.

Order, augmentation and shares are the same for all of them, so that their batches are equal
to the last bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuscale.config.schema import AugmentConfig
from neuscale.data.augment import Normalize, Rows, resize
from neuscale.data.augmentation import draw_augmentation
from neuscale.data.mix import mix_partners
from neuscale.data.order import evaluation_batches, micro_batches, permutation
from neuscale.data.packed import PackedMeta
from neuscale.data.resized_crop import draw_windows
from neuscale.errors import UsageError
from neuscale.native_ops import native_ops


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


@dataclass(frozen=True)
class Request:
    """Images that are wanted: `samples` int64 [B], each once.

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
            "Give a side to resize to (data.image_size=64), or prepare the data with --size.",
        )
    return image_size or meta.height


class Loader(ABC):
    """Makes the batches of a split on `device`.

    `size`: the side in pixels of what the model sees. Raises UsageError for images that are not
    square where no `image_size` is given.
    """

    kind: str  # what data.loader calls it

    def __init__(
        self,
        meta: PackedMeta,
        labels: NDArray[np.int64],
        image_size: int | None,
        device: torch.device,
        share: Share,
    ) -> None:
        self.size = model_size(meta, image_size)
        self.device, self.share = device, share
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

    @abstractmethod
    def _read(self, requests: Iterable[Request]) -> Iterator[Rows]:
        """The bytes of each request, on the device, in the order of its samples.

        They may be overwritten once the next request is asked for.
        """

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
        count, rank, processes = len(self), self.share.rank, self.share.processes
        order = permutation(seed, epoch, count)
        mixes = augment.mixup_alpha or augment.cutmix_alpha
        partners = mix_partners(seed, epoch, count, global_batch_size) if mixes else None
        windows = draw_windows(augment.resized_crop, seed, epoch, count) if augment.resized_crop else None
        augmentation = draw_augmentation(
            augment, seed, epoch, count, global_batch_size, self.stored_size, self.device
        )
        parts = [
            part
            for step in range(first_step, steps)
            for part in micro_batches(step, global_batch_size, rank, processes, accumulation_steps)
        ]

        def plan(part: slice) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
            """The positions that a part needs, each once, and where in them its images and partners are."""
            own = np.arange(part.start, part.stop)
            if partners is None:
                return own, None
            return np.unique(np.concatenate([own, partners[part]]), return_inverse=True)

        def requests() -> Iterator[Request]:
            for part in parts:
                positions, _ = plan(part)
                yield Request(order[positions], windows[positions] if windows is not None else None)

        batches: list[Batch] = []
        for part, rows in zip(parts, self._read(requests()), strict=True):
            _, places = plan(part)
            if places is not None:
                rows = rows[torch.from_numpy(places).to(self.device)]
            images = augmentation.images(rows, self._normalize, part)
            samples = torch.from_numpy(order[part]).to(self.device)
            partner_labels = shares = None
            if augmentation.mix is not None and partners is not None:
                partner_labels = self.labels[torch.from_numpy(order[partners[part]]).to(self.device)]
                shares = augmentation.mix.share[part]
            batches.append(
                Batch(resize(images, self.size), self.labels[samples], samples, partner_labels, shares)
            )
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
        parts = evaluation_batches(len(order), batch_size, self.share.rank, self.share.processes)
        for part, rows in zip(parts, self._read(Request(order[part]) for part in parts), strict=True):
            pixels = rows.gathered()
            if change is not None:
                pixels = change(pixels, order[part])
            samples = torch.from_numpy(order[part]).to(self.device)
            yield Batch(resize(self._normalize(pixels), self.size), self.labels[samples], samples)
