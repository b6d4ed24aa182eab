"""Reference steps of a recipe: images, loss, gradients, learning rate and update.

The test that uses it gives every value; nothing comes from a preset or a default of the program.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reference.draws import generator_seed, order, uniform
from reference.images import Augment, Epoch, Pixels, augmented
from reference.models import Keep, Parameters
from reference.optimizers import SGD, AdamW, Muon, averaged, clipped

Optimizer = SGD | AdamW | Muon


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    `optimizers` makes the optimizer of the blocks' matrices and that of all other parameters; `layer`
    maps a parameter's name to the number of its layer; `drop_path` is the rate of each block.
    """

    forward: Callable[..., Tensor]
    optimizers: Callable[[], tuple[Optimizer, Optimizer]]
    lr: float
    steps_per_epoch: int
    total_steps: int
    batch: int
    weight_decay: float
    augment: Augment = field(default_factory=Augment)
    seed: int = 0
    warmup_steps: int = 0
    schedule: Callable[[float, int], float] = lambda progress, _: 0.5 * (1 + math.cos(math.pi * progress))
    smoothing: float = 0.0
    clip: float | None = 1.0
    accumulation: int = 1
    processes: int = 1
    drop_path: tuple[float, ...] = ()
    ema_decay: float = 0.0
    layer_decay: float = 1.0
    layer: Callable[[str], int] = lambda _: 0

    def lr_at(self, step: int) -> float:
        """Learning rate at a step; the schedule gets the progress after the warm-up, 0 … 1, and the step."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.lr * self.schedule(progress, step)

    def lr_scale(self, name: str, names: Sequence[str]) -> float:
        return self.layer_decay ** (max(map(self.layer, names)) - self.layer(name))


@dataclass(frozen=True)
class Photos:
    """Training images of a folder, ordered by class and name; each is [C, H, W] in bytes."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        classes = sorted(path for path in self.folder.iterdir() if path.is_dir())
        return [file for folder in classes for file in sorted(folder.iterdir())]

    @cached_property
    def pixels(self) -> list[Pixels]:
        return [np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in self.files]

    @cached_property
    def labels(self) -> list[int]:
        names = sorted({file.parent.name for file in self.files})
        return [names.index(file.parent.name) for file in self.files]

    @cached_property
    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels of all images, as fractions of 255."""
        every = np.stack(self.pixels).astype(np.float64) / 255
        return every.mean((0, 2, 3)).tolist(), every.std((0, 2, 3)).tolist()


@dataclass(frozen=True)
class Batch:
    """Micro-batch of a process. `positions`: in the epoch; `own`: share of each image's own label."""

    images: Tensor
    labels: Tensor
    partner_labels: Tensor
    own: Tensor
    positions: list[int]


@dataclass(frozen=True)
class Reference:
    """Training steps of a recipe on photos."""

    recipe: Recipe
    photos: Photos

    def batches(self, step: int, rank: int = 0) -> list[Batch]:
        """Micro-batches of a rank in a step."""
        recipe, photos = self.recipe, self.photos
        number, of_epoch = divmod(step, recipe.steps_per_epoch)
        count = len(photos.files)
        sequence = order(recipe.seed, number, count)
        epoch = Epoch(recipe.augment, recipe.seed, number, count, recipe.batch, photos.pixels[0].shape[1:])
        share = recipe.batch // recipe.processes
        first = of_epoch * recipe.batch + rank * share
        size = share // recipe.accumulation
        return [
            self._batch(sequence, epoch, list(range(start, start + size)))
            for start in range(first, first + share, size)
        ]

    def _batch(self, sequence: list[int], epoch: Epoch, positions: list[int]) -> Batch:
        labels = self.photos.labels
        found = [
            augmented(self.photos.pixels, sequence, epoch, position, *self.photos.mean_and_std)
            for position in positions
        ]
        return Batch(
            torch.stack([image for image, _, _ in found]),
            torch.tensor([labels[sequence[position]] for position in positions]),
            torch.tensor([labels[sequence[partner]] for _, _, partner in found]),
            torch.tensor([own for _, own, _ in found]),
            positions,
        )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy with the mixed and smoothed targets."""
        classes = logits.shape[1]
        labels, partners = F.one_hot(batch.labels, classes), F.one_hot(batch.partner_labels, classes)
        targets = batch.own[:, None] * labels + (1 - batch.own[:, None]) * partners
        targets = targets * (1 - self.recipe.smoothing) + self.recipe.smoothing / classes
        return -(targets * logits.log_softmax(1)).sum(1).mean()

    def _correct(self, named: Tensor, batch: Batch) -> float:
        """Number of correct predictions; in a mixed image, the predicted label counts with its weight."""
        own, other = (named == batch.labels).double(), (named == batch.partner_labels).double()
        return float((batch.own * own + (1 - batch.own) * other).sum())

    def _keep(self, step: int, positions: list[int]) -> Keep:
        """Stochastic depth (Huang et al. 2016): factors that drop or scale up the branch of each sample."""
        recipe = self.recipe
        epoch, count = step // recipe.steps_per_epoch, len(self.photos.files)
        numbers = [i for i, rate in enumerate(recipe.drop_path) if rate > 0]

        def keep(block: int, branch: int) -> Tensor | float:
            if block not in numbers:
                return 1.0
            rate = recipe.drop_path[block]
            draws = _draws(recipe.seed, epoch, f"drop path {numbers.index(block)}.{branch}", count)
            return torch.tensor([float(draws[i] >= rate) / (1 - rate) for i in positions])

        return keep

    def gradients(
        self, weights: Parameters, step: int, given: list[Tensor] | None = None
    ) -> tuple[dict[str, Tensor], float, float]:
        """Clipped gradients of a step on all processes, the mean loss and the accuracy before the update.

        `given`: images of the micro-batches, to be used instead of those of `batches`.
        """
        recipe = self.recipe
        p = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
        losses, correct = [], 0.0
        images = iter(given or [])
        for rank in range(recipe.processes):
            torch.manual_seed(generator_seed(recipe.seed, step, f"dropout {rank}"))
            for batch in self.batches(step, rank):
                keep = self._keep(step, batch.positions)
                logits = recipe.forward(p, next(images, batch.images), keep=keep)
                losses.append(self.loss(logits, batch))
                correct += self._correct(logits.argmax(1), batch)
        loss = torch.stack(losses).mean()
        found = torch.autograd.grad(loss, list(p.values()), allow_unused=True)
        named = {name: g for name, g in zip(p, found, strict=True) if g is not None}
        return clipped(named, recipe.clip), float(loss.detach()), correct / recipe.batch


@cache
def _draws(seed: int, epoch: int, purpose: str, count: int) -> list[float]:
    drawn: list[float] = uniform(seed, epoch, purpose, count).tolist()
    return drawn


class Updates:
    """Optimizer steps, from weights and gradients to the updated weights."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.hidden, self.others = recipe.optimizers()

    def __call__(self, weights: Parameters, gradients: Parameters, step: int) -> Parameters:
        recipe, lr = self.recipe, self.recipe.lr_at(step)
        updated = {}
        for name, w in weights.items():
            table = any(word in name for word in ("bias_table", "pos_embedding", "class_token"))
            matrix = w.dim() > 1 and not table
            decay = recipe.weight_decay if matrix else 0.0
            is_hidden = matrix and w.dim() == 2 and not name.startswith("head")
            optimizer = self.hidden if is_hidden else self.others
            rate = lr * recipe.lr_scale(name, list(weights))
            updated[name] = optimizer.update(name, w, gradients[name], rate, decay)
        return updated


def average(weights: Sequence[Parameters], decay: float) -> Parameters:
    """Moving average after the last of `weights`; the first of them are the initial weights."""
    result = {name: w.double() for name, w in weights[0].items()}
    for updates, now in enumerate(weights[1:], 1):
        result = {name: averaged(a, now[name], decay, updates) for name, a in result.items()}
    return result


def assert_close(found: Tensor, expected: Tensor, allowed: float, what: str) -> None:
    """Raise AssertionError, naming `what`, if an element differs by more than `allowed`."""
    difference = float((found.double() - expected.double()).abs().max())
    assert difference <= allowed, f"{what}: {difference:.3g} off, allowed {allowed:.3g}"
