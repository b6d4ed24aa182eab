"""Verification of an export: the written file is read back and compared with the trained model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuscale.data.formats.image_list import ListedDataset, read_image_file
from neuscale.data.loaders.loader import Batch
from neuscale.errors import UserError
from neuscale.evaluation.evaluate import AnyEvaluation, evaluate, evaluated_labels
from neuscale.evaluation.latency import measure_latency
from neuscale.hardware import available_cores
from neuscale.inference.classifier import FILES, RECORD, Classifier
from neuscale.inference.graph_formats import first_line
from neuscale.inference.restore import Restored
from neuscale.inference.runtimes import Runner, reloaded
from neuscale.progress import Progress

CHECKED_IMAGES = 64

# Tolerance of logits, relative to the largest one: far above the effect of another summation order, far
# below a difference that changes a class.
TOLERANCE = 1e-4

LATENCY_BATCHES = (1, 32)


def spread_images(restored: Restored, split: str, most: int) -> Tensor:
    """At most `most` images, evenly spread over a split, as model input: uint8 [N, C, H, W]."""
    count = restored.data.meta.counts[split]
    chosen = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))
    return torch.from_numpy(_pixels(restored, split, chosen))


def _pixels(restored: Restored, split: str, chosen: NDArray[Any]) -> NDArray[np.uint8]:
    data = restored.data
    if not isinstance(data, ListedDataset):
        return np.stack([data.image(split, int(i)) for i in chosen])
    decode, files, folder = restored.preprocessing.decode, data.files(split), data.files_folder
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="decode") as pool:
        return np.stack(list(pool.map(lambda i: decode(read_image_file(folder, files[i])), chosen)))


@torch.inference_mode()
def difference(classifier: Classifier, images: Tensor, again: Runner, file: str) -> float:
    """Largest absolute difference between the logits of a model and of its file, on batches of three sizes.

    Raises UserError if the file cannot be run or its output has another shape.
    """
    expected = classifier(images)
    sizes = [1, 3, len(images) - 4] if len(images) > 4 else [1] * len(images)
    try:
        found = torch.cat([again(part) for part in torch.split(images, sizes)])
    except Exception as error:  # each runtime has its own error types
        raise UserError(
            f"the exported {file} cannot be run ({first_line(error)}).",
            "Nothing was written; export it in another format or precision.",
        ) from error
    if found.shape != expected.shape:  # the subtraction would broadcast, or fail
        raise UserError(
            f"the exported {file} gives {'×'.join(map(str, found.shape))} numbers instead of"
            f" {'×'.join(map(str, expected.shape))}.",
            "Nothing was written; export it in another format.",
        )
    return float((found - expected).abs().max())


def compare(classifier: Classifier, images: Tensor, kind: str, folder: Path) -> dict[str, Any]:
    """Compare the file in `folder` with the model. Raises UserError if the logits differ."""
    found = difference(classifier, images, reloaded(kind, folder), FILES[kind])
    with torch.inference_mode():
        largest = max(1.0, float(classifier(images).abs().max()))
    if not found <= TOLERANCE * largest:  # NaN as well
        raise UserError(
            f"the exported {FILES[kind]} gives other numbers than the model (by {found:.2g}).",
            "Nothing was written; export it in another format.",
        )
    return {"images": len(images), "max_abs_difference": found}


class _AsModule(nn.Module):
    """Module that calls a Runner; not as a submodule, since a torch.export program has no train mode."""

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self._run: Runner = lambda images: run(images)

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)


def evaluate_file(restored: Restored, run: Runner, progress: Progress) -> AnyEvaluation:
    """Evaluate an exported model on all validation images, decoded as in `predict`."""
    data, size = restored.data, restored.config.eval.batch_size
    labels = torch.from_numpy(data.labels("val"))

    def batches() -> Iterator[Batch]:
        for part in torch.split(torch.arange(len(labels)), size):
            images = torch.from_numpy(_pixels(restored, "val", part.numpy()))
            yield Batch(images, labels[part], part, 0, slice(int(part[0]), int(part[-1]) + 1))

    cpu = torch.device("cpu")
    table = evaluated_labels(data.meta, cpu)
    return evaluate(_AsModule(run), batches(), table, cpu, nullcontext, progress, len(labels))


def time_file(run: Runner, images: Tensor, progress: Progress) -> list[dict[str, Any]]:
    """Latency of an exported model on the CPU, at each batch size of LATENCY_BATCHES."""
    measured = measure_latency(_AsModule(run), images, LATENCY_BATCHES, nullcontext, progress)
    return [asdict(each) for each in measured]


def file_size(folder: Path) -> int:
    """Total size of the model files in `folder` in bytes, without record and card."""
    others = (RECORD, "README.md")
    return sum(each.stat().st_size for each in folder.iterdir() if each.is_file() and each.name not in others)
