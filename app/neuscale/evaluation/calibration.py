"""Calibration of a model: accuracy against confidence, in bins of confidence."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuscale.errors import disk_error
from neuscale.fs import make_folder, replacing

BINS = 15  # as in Guo et al. 2017 and most later work


@dataclass(frozen=True)
class Calibration:
    """Images in bins of equal width by confidence, the probability of the predicted class.

    For each bin: the number of images, the sum of their confidences, the number of correct predictions.
    """

    counts: list[int]
    confidences: list[float]
    correct: list[int]

    @property
    def ece(self) -> float:
        """The expected calibration error (Guo et al. 2017, eq. 3), in 0 … 1."""
        pairs = zip(self.confidences, self.correct, strict=True)
        return sum(abs(confidence - right) for confidence, right in pairs) / max(1, sum(self.counts))

    def record(self) -> list[dict[str, Any]]:
        """The bins for JSON; confidence and accuracy of an empty bin are None."""
        width = 1 / len(self.counts)
        return [
            {
                "from": round(i * width, 6),
                "to": round((i + 1) * width, 6),
                "images": count,
                "confidence": self.confidences[i] / count if count else None,
                "accuracy": self.correct[i] / count if count else None,
            }
            for i, count in enumerate(self.counts)
        ]


def bin_sums(logits: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Number of images, sum of confidences and number of correct images per bin: float32 [3, bins].

    logits float [B, classes], labels int64 [B]. Sums of several batches can be added, up to 2²⁴ images.
    """
    confidence, predicted = logits.softmax(1).max(1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).float()])
    return torch.zeros(3, bins, device=logits.device).index_add_(1, index, values)


def calibration_of(sums: Tensor) -> Calibration:
    """Calibration from the result of `bin_sums`."""
    counts, confidences, correct = sums.cpu().tolist()
    return Calibration([int(count) for count in counts], confidences, [int(right) for right in correct])


def save_reliability_diagram(calibration: Calibration, title: str, path: Path) -> None:
    """Plot accuracy over confidence and the number of images of each bin as a PNG. Raises UserError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bins = calibration.record()
    width = 1 / len(bins)
    middles = [bin["from"] + width / 2 for bin in bins]
    used = [bin for bin in bins if bin["images"]]
    figure = Figure(figsize=(5.2, 6.0), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    above.bar(
        middles, [bin["accuracy"] or 0 for bin in bins], width * 0.94, color="#4477aa", label="accuracy"
    )
    above.plot([0, 1], [0, 1], "--", color="black", linewidth=1, label="perfectly calibrated")
    points = [bin["confidence"] for bin in used], [bin["accuracy"] for bin in used]
    above.plot(*points, "o", color="#cc3311", markersize=4, label="at the mean confidence")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    above.set_title(f"{title}\nECE {calibration.ece:.2%} in {len(bins)} bins", fontsize=11)
    above.legend(loc="upper left", fontsize=9)
    below.bar(middles, [bin["images"] for bin in bins], width * 0.94, color="#bbbbbb")
    below.set(xlabel="confidence", ylabel="images")
    canvas.draw()
    try:
        make_folder(path.parent)
        with replacing(path) as part:
            figure.savefig(part, format="png")
    except OSError as error:
        raise disk_error(error, path) from error
