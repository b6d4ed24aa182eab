"""Loss of a micro-batch, and what the curves show of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from neuscale.data.loaders.loader import Batch


def batch_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of float logits [B, classes]; for mixed images, weighted between both labels."""
    if batch.mix_weights is None or batch.partner_labels is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    own, other = (
        F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
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
