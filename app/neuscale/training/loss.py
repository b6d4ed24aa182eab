"""Loss of a micro-batch, its sums for the curves, and the error if it is not finite."""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from neuscale.config import Config
from neuscale.config.schema import TrainConfig
from neuscale.data.loaders.loader import Batch, Loader
from neuscale.errors import UsageError, UserError
from neuscale.fs import write_atomically
from neuscale.project.targets import call, make
from neuscale.protocols import Loss
from neuscale.training.checkpoint import CheckpointFolder

FILE = "nonfinite.json"


def class_weights(
    text: str, counts: Sequence[int], device: torch.device, several_of: int | None = None
) -> Tensor | None:
    """Weights of `train.class_weights`, float32 [classes]; None: each image counts 1.

    "balanced" is N / (classes × images of the class), whose mean over the images is 1; for multi-label data
    with `several_of` images it is (images without the class) / (images with it). Raises UsageError for
    anything else than "none" and a list with a positive number for each class.
    """
    if text == "none":
        return None
    if text == "balanced":
        weights = [sum(counts) / (len(counts) * count) for count in counts]
        if several_of is not None:
            weights = [(several_of - count) / count for count in counts]
    else:
        try:
            numbers = text.strip().removeprefix("[").removesuffix("]").split(",")
            weights = [float(number) for number in numbers]
        except ValueError:
            raise UsageError(
                f"train.class_weights={text}: expected none, balanced, or a list such as [1,2.5,1]."
            ) from None
        if len(weights) != len(counts) or not all(0 < weight < math.inf for weight in weights):
            raise UsageError(
                f"train.class_weights={text}: expected {len(counts)} positive numbers, one for each class."
            )
    return torch.tensor(weights, device=device)


class TrainingLoss:
    """The loss of a configuration for the training images of a data set.

    `counts`: number of these images by class, `images`: in total; `labels`: as in `evaluate`. Raises
    UsageError as `class_weights` does.
    """

    def __init__(
        self,
        train: TrainConfig,
        counts: Sequence[int],
        images: int,
        device: torch.device,
        labels: int | Tensor = 0,
    ) -> None:
        table = labels if isinstance(labels, Tensor) else None
        several_of = images if table is not None else None
        self._train = train
        self._own: Loss | None = make(train.loss, "train.loss") if train.loss is not None else None
        if self._own is not None and (train.class_weights != "none" or train.focal_gamma):
            raise UsageError(
                "train.loss is your own; train.class_weights and train.focal_gamma are the cross-entropy's.",
                "Remove them, or weigh in the loss.",
            )
        self.weights = class_weights(train.class_weights, counts, device, several_of)
        self._table = table.to(device).float() if table is not None else None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss of a micro-batch, from logits [B, classes]."""
        if self._own is not None:
            return self._own_mean(logits.float(), batch)
        smoothing, gamma = self._train.label_smoothing, self._train.focal_gamma
        return batch_loss(logits.float(), batch, smoothing, self.weights, gamma, self._table)

    def _own_mean(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean of the user-defined loss, with soft targets: smoothed, and mixed like the images."""
        assert self._own is not None
        targets = self._targets(batch.labels, logits.shape[1])
        if batch.mix_weights is not None and batch.partner_labels is not None:
            own = batch.mix_weights[:, None]
            targets = own * targets + (1 - own) * self._targets(batch.partner_labels, logits.shape[1])
        found: Any = call(self._own, "train.loss", logits, targets)
        if not isinstance(found, Tensor) or found.shape not in ((), (len(logits),)):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(
                f"train.loss: gives {what}, and not a number, nor one for each of {len(logits)} images.",
                "Return the mean, or the losses of the images.",
            )
        return found.float().mean()

    def _targets(self, labels: Tensor, classes: int) -> Tensor:
        smoothing = self._train.label_smoothing
        if self._table is not None:
            return self._table[labels] * (1 - smoothing) + smoothing / 2
        return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes

    def sums(self, logits: Tensor, batch: Batch, mean_loss: Tensor) -> Tensor:
        """See `batch_sums`."""
        return batch_sums(logits, batch, mean_loss, self._table)


def batch_loss(
    logits: Tensor,
    batch: Batch,
    label_smoothing: float,
    weights: Tensor | None = None,
    focal_gamma: float = 0.0,
    table: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of float logits [B, classes]; for mixed images, weighted between both labels.

    `weights` [classes]: factor on an image's loss by its class. The mean is over images and not over weights,
    so that it does not depend on how a batch is split. `focal_gamma`: exponent of the factor (1 - p)^gamma of
    the focal loss (Lin et al. 2017), p the probability of the right answer. `table`: for multi-label data,
    the classes of each label, float32 [labels, classes]; the loss is then the binary cross-entropy, averaged
    over classes as well, and `weights` apply to the positive targets of a class.
    """

    def losses(labels: Tensor) -> Tensor:
        if table is not None:
            return _binary_losses(logits, table[labels], label_smoothing, weights, focal_gamma)
        found = F.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing, reduction="none")
        if focal_gamma:
            right = logits.log_softmax(1).gather(1, labels[:, None])[:, 0].exp()
            found = (1 - right) ** focal_gamma * found
        return found

    if batch.mix_weights is not None and batch.partner_labels is not None:
        own, other = losses(batch.labels), losses(batch.partner_labels)
        return (batch.mix_weights * own + (1 - batch.mix_weights) * other).mean()
    if weights is None and table is None and not focal_gamma:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    return losses(batch.labels).mean()


def _binary_losses(
    logits: Tensor, targets: Tensor, label_smoothing: float, weights: Tensor | None, focal_gamma: float
) -> Tensor:
    """Mean over classes, [B]. Targets are smoothed towards 1/2, as in Keras' BinaryCrossentropy."""
    smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
    found = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none", pos_weight=weights)
    if focal_gamma:
        wrong = torch.where(targets > 0, -logits, logits).sigmoid()
        found = wrong**focal_gamma * found
    return found.mean(1)


def batch_sums(logits: Tensor, batch: Batch, mean_loss: Tensor, table: Tensor | None = None) -> Tensor:
    """Sum of the losses and number of correct predictions of a micro-batch: float32 [2].

    logits [B, classes]; `mean_loss` is the mean loss of these images. A prediction for a mixed image counts
    as the weight of the label that it names. With `table` an image counts as the share of its classes that
    are right.
    """
    scores = logits.detach()

    def right(labels: Tensor) -> Tensor:
        if table is not None:
            return ((scores >= 0) == (table[labels] > 0)).float().mean(1)
        return (scores.argmax(1) == labels).float()

    correct = right(batch.labels)
    if batch.mix_weights is not None and batch.partner_labels is not None:
        correct = batch.mix_weights * correct + (1 - batch.mix_weights) * right(batch.partner_labels)
    return torch.stack([mean_loss.detach().float() * len(batch.labels), correct.sum()])


def check_finite(
    bad: Tensor,
    config: Config,
    loader: Loader,
    steps_per_epoch: int,
    checkpoints: CheckpointFolder,
    write: bool,
) -> None:
    """Raise UserError if the loss of a step was not finite.

    `bad`: the first such step of each rank, -1 if there is none; `loader`: that of the training images.
    With `write`, the indices of the step's images, of which there may be thousands, are written to a file
    in the run folder.
    """
    steps = [int(step) for step in bad.flatten().tolist() if step >= 0]
    if not steps:
        return
    step = min(steps)  # steps count from 0
    epoch, place = divmod(step, steps_per_epoch)
    size = config.train.global_batch_size
    samples = loader.order(config.run.seed, epoch)[place * size : (place + 1) * size].tolist()
    folder = checkpoints.folder.parent
    if write:
        write_atomically(folder / FILE, json.dumps({"step": step + 1, "epoch": epoch, "samples": samples}))
    paths = checkpoints.paths()
    last = f"The last good checkpoint is {paths[-1].name}." if paths else "There is no checkpoint yet."
    shown = ", ".join(map(str, samples[:8]))
    raise UserError(
        f"the training loss is not finite at step {step + 1}, epoch {epoch + 1}."
        f" Its images: {shown}{', …' if len(samples) > 8 else ''} (all in {folder / FILE}). {last}",
        f"Lower optim.lr (now {config.optim.lr:g}), or set optim.clip_grad_norm or train.precision=fp32.",
    )
