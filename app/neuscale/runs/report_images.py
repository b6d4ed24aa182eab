"""The pictures of a report: the images a model is most wrong about, and a matrix too large to draw."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from neuscale.errors import UsageError
from neuscale.evaluation.evaluate import Evaluation
from neuscale.evaluation.predictions import predict_split
from neuscale.evaluation.restore import restore
from neuscale.evaluation.run import evaluation_loader
from neuscale.progress import Progress
from neuscale.runs.folder import RunFolder

LARGEST_SIDE = 96
WORST = 24
PAIRS = 6
OF_A_PAIR = 8
BLUE = (37, 99, 168)


@dataclass(frozen=True)
class SeenImages:
    """An evaluation and the images that it was wrong about, ready for the page."""

    evaluation: Evaluation
    classes: list[str]
    words: str
    worst: list[dict[str, str]]
    pairs: list[dict[str, Any]]
    rendering: str


def seen_images(run: RunFolder, manifest: dict[str, Any], checkpoint: str, progress: Progress) -> SeenImages:
    """Evaluates a checkpoint on the run's validation images. Raises UserError where either is missing."""
    restored = restore(run, checkpoint, "auto", None, progress)
    data, meta = restored.data, restored.data.meta
    if meta.fingerprint != manifest["data"]["fingerprint"]:
        raise UsageError(
            f"{run.path}: was trained on other data than what is now prepared as '{meta.name}'.",
            "Prepare the same data again.",
        )
    found = predict_split(restored, evaluation_loader(restored, "val"), progress)

    def shown(sample: int) -> dict[str, str]:
        return {
            "source": picture_source(torch.from_numpy(data.image("val", sample))),
            "true": meta.classes[int(found.labels[sample])],
            "predicted": meta.classes[int(found.predicted[sample])],
            "confidence": f"{float(found.confidence[sample]):.1%}",
        }

    pairs = [
        {
            "true": meta.classes[i],
            "predicted": meta.classes[j],
            "words": f"{count:,} of {total:,} images",
            "images": [shown(sample) for sample in found.mistaken(i, j, OF_A_PAIR)],
        }
        for i, j, count, total in confused_pairs(found.evaluation.confusion)
    ]
    step = f", after step {restored.step:,}" if restored.step is not None else ""
    return SeenImages(
        found.evaluation,
        meta.classes,
        f"Of {restored.checkpoint.name}{step}, on {found.evaluation.samples:,} validation images.",
        [shown(sample) for sample in found.worst(WORST)],
        pairs,
        "pixelated" if max(meta.height, meta.width) < LARGEST_SIDE // 2 else "auto",
    )


def confused_pairs(confusion: Tensor) -> list[tuple[int, int, int, int]]:
    """(true, predicted, count, images of the true class) of the most frequent mistakes."""
    wrong = confusion.clone()
    wrong.fill_diagonal_(0)
    counts, places = wrong.flatten().sort(descending=True, stable=True)
    classes = len(confusion)
    return [
        (place // classes, place % classes, count, int(confusion[place // classes].sum()))
        for count, place in zip(counts[:PAIRS].tolist(), places[:PAIRS].tolist(), strict=True)
        if count
    ]


def picture_source(pixels: Tensor) -> str:
    """An image uint8 [C, H, W] as the address of an <img>; large ones made smaller."""
    array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    picture = Image.fromarray(array.contiguous().numpy())
    small = max(picture.size) <= LARGEST_SIDE
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return _address(picture, "PNG" if small else "JPEG")


def confusion_picture(confusion: Tensor) -> str:
    """The shares of a large confusion matrix as a picture that stands on any background."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    alpha = (shares.sqrt() * 255).round().to(torch.uint8)
    color = torch.tensor(BLUE, dtype=torch.uint8).expand(*alpha.shape, 3)
    picture = Image.fromarray(torch.cat([color, alpha[..., None]], 2).numpy(), "RGBA")
    style = "width: 100%; max-width: 680px; display: block; margin: auto; image-rendering: pixelated"
    return f'<img style="{style}" alt="confusion matrix" src="{_address(picture, "PNG")}">'


def _address(picture: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{encoded}"
