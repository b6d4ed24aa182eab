"""Loss of a micro-batch, what the curves show of it, and the end where it is no number."""

import json
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neuscale.config import Config
from neuscale.data.loaders.loader import Batch, Loader
from neuscale.errors import UsageError, UserError
from neuscale.fs import write_atomically
from neuscale.training.checkpoint import CheckpointFolder

FILE = "nonfinite.json"


def class_weights(text: str, counts: Sequence[int], device: torch.device) -> Tensor | None:
    """The weights of `train.class_weights`, float32 [classes]; None: each image counts 1.

    "balanced" is N / (classes × images of the class), whose mean over the images is 1. Raises UsageError
    for anything else than "none" and a list of a positive number for each class.
    """
    if text == "none":
        return None
    if text == "balanced":
        weights = [sum(counts) / (len(counts) * count) for count in counts]
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


def batch_loss(logits: Tensor, batch: Batch, label_smoothing: float, weights: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of float logits [B, classes]; for mixed images, weighted between both labels.

    `weights` [classes]: what an image counts by its class. The mean is over images and not over weights, so
    that it does not depend on how a batch is cut into parts.
    """
    if batch.mix_weights is None or batch.partner_labels is None:
        if weights is None:
            return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
        losses = F.cross_entropy(
            logits, batch.labels, weight=weights, label_smoothing=label_smoothing, reduction="none"
        )
        return losses.mean()
    own, other = (
        F.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing, reduction="none")
        for labels in (batch.labels, batch.partner_labels)
    )
    return (batch.mix_weights * own + (1 - batch.mix_weights) * other).mean()


def batch_sums(logits: Tensor, batch: Batch, mean_loss: Tensor) -> Tensor:
    """Sum of the losses and number of correct predictions of a micro-batch: float32 [2].

    logits [B, classes]; `mean_loss` is the mean loss of these images. Of a mixed image a prediction is as
    much correct as the weight of the label that it names.
    """
    predicted = logits.detach().argmax(1)
    correct = (predicted == batch.labels).float()
    if batch.mix_weights is not None and batch.partner_labels is not None:
        other = (predicted == batch.partner_labels).float()
        correct = batch.mix_weights * correct + (1 - batch.mix_weights) * other
    return torch.stack([mean_loss.detach().float() * len(batch.labels), correct.sum()])


def check_finite(
    bad: Tensor,
    config: Config,
    loader: Loader,
    steps_per_epoch: int,
    checkpoints: CheckpointFolder,
    write: bool,
) -> None:
    """Raise UserError where a step's loss was not finite.

    `bad`: the first such step of each process, -1 without; `loader`: of the training
    images. With `write`, the images' numbers go to a file of the run folder, as a step may have thousands.
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
