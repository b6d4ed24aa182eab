"""What a model says to each image of a split, for those who want to see the images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neuscale.evaluation.evaluate import Evaluation
from neuscale.evaluation.run import OpenedRun
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


@torch.inference_mode()
def predict(opened: OpenedRun, progress: Progress) -> Predictions:
    """The predictions of `opened` for all images of its split; in one process."""
    classes = opened.data.meta.num_classes
    opened.model.eval()
    parts: list[list[Tensor]] = []
    with progress.task("evaluating", len(opened.loader), "img") as task:
        for batch in opened.loader.evaluation(opened.config.eval.batch_size):
            with opened.accelerator.autocast():
                logits = opened.model(batch.images)
            logits = logits.float()
            confidence, predicted = logits.softmax(1).max(1)
            loss = F.cross_entropy(logits, batch.labels, reduction="none")
            own = logits.gather(1, batch.labels[:, None])
            in_top5 = (logits > own).sum(1) < 5
            parts.append([x.cpu() for x in (batch.labels, predicted, confidence, loss, in_top5)])
            task.advance(len(batch.labels))
    labels, predicted, confidence, loss, in_top5 = (torch.cat(column) for column in zip(*parts, strict=True))
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    evaluation = Evaluation(
        top1=float((labels == predicted).double().mean()),
        top5=float(in_top5.double().mean()),
        loss=float(loss.double().mean()),
        samples=len(labels),
        confusion=confusion,
    )
    return Predictions(labels, predicted, confidence, loss, evaluation)
