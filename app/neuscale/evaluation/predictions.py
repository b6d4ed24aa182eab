"""What a model says to each image of a split, for those who want to see the images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuscale.data.loader import Batch, Loader
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.evaluation.restore import Restored
from neuscale.progress import Progress


@dataclass(frozen=True)
class Predictions:
    """Of each image, in the order of the data set: `labels`, `predicted`, `confidence` in it, `loss`: [N]."""

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    loss: Tensor
    evaluation: Evaluation

    def worst(self, count: int) -> list[int]:
        """The images with the highest loss, the worst first."""
        return self.loss.argsort(descending=True, stable=True)[:count].tolist()

    def mistaken(self, true: int, predicted: int, count: int) -> list[int]:
        """Images of class `true` taken for `predicted`, the surest first."""
        found = torch.nonzero((self.labels == true) & (self.predicted == predicted))[:, 0]
        return found[self.confidence[found].argsort(descending=True, stable=True)][:count].tolist()


def predict_split(restored: Restored, loader: Loader, progress: Progress) -> Predictions:
    """What `restored`'s model says to all images of `loader`'s split; in one process."""
    recorded = _Recorded(restored.model)
    labels: list[Tensor] = []

    def batches() -> Iterator[Batch]:
        for batch in loader.evaluation(restored.config.eval.batch_size):
            labels.append(batch.labels.cpu())
            yield batch

    evaluation = evaluate(
        recorded,
        batches(),
        restored.data.meta.num_classes,
        restored.device,
        restored.accelerator.autocast,
        progress,
        total=len(loader),
    )
    logits, true = torch.cat(recorded.logits), torch.cat(labels)
    confidence, predicted = logits.softmax(1).max(1)
    loss = F.cross_entropy(logits, true, reduction="none")
    return Predictions(true, predicted, confidence, loss, evaluation)


class _Recorded(nn.Module):
    """A model that keeps what it said."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.logits: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        self.logits.append(logits.float().cpu())
        return logits
