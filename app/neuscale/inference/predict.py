"""Predictions of a trained model for image files, and for a split of its data."""

import csv
import errno
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from neuscale.data.loaders.loader import Batch, Loader
from neuscale.data.sources.decode import SUFFIXES, unusable
from neuscale.data.sources.file_tree import MAX_MEMBER_BYTES, check_size, is_ignored
from neuscale.errors import DataError, UsageError, disk_error
from neuscale.evaluation.evaluate import Evaluation, evaluate, evaluated_labels
from neuscale.evaluation.multi_label import THRESHOLD
from neuscale.fs import make_folder, replacing
from neuscale.hardware import available_cores
from neuscale.inference.restore import Restored
from neuscale.pictures import CELL_SIDE, captioned_grid, scaled_size
from neuscale.progress import Progress, Task

MOST_SHOWN = 100  # largest number of images in a picture of predictions


@dataclass(frozen=True)
class Prediction:
    """Most likely classes of an image, best first, each with its probability.

    `pixels`: the image decoded for the model, uint8 [C, H, W].
    """

    file: Path
    top: list[tuple[str, float]]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Unreadable:
    """A path from which no image can be read, and the reason."""

    file: Path
    reason: str


def find_images(paths: Sequence[Path]) -> list[Path | Unreadable]:
    """Image files of `paths`: files as given, folders searched recursively and sorted by path.

    In folders, only files with the suffix of an image count. A folder without one is Unreadable.
    """
    found: list[Path | Unreadable] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
        elif below := sorted(_images_below(path)):
            found += below
        else:
            names = ", ".join(sorted(SUFFIXES))
            found.append(Unreadable(path, f"there is no image file in this folder ({names})"))
    return found


def predict(
    restored: Restored, files: Sequence[Path | Unreadable], top: int, task: Task
) -> Iterator[Prediction | Unreadable]:
    """Predict the `top` most likely classes of each file, in the given order, one batch at a time.

    For multi-label data, each class has an independent probability, all classes are returned and `top`
    is ignored.
    """
    preprocessing, classes = restored.preprocessing, restored.data.meta.classes
    top = len(classes) if restored.several_labels else min(top, len(classes))
    batch_size = restored.config.eval.batch_size

    def read(file: Path | Unreadable) -> NDArray[np.uint8] | Unreadable:
        if isinstance(file, Unreadable):
            return file
        try:
            size = file.stat().st_size
            content = file.read_bytes() if size <= MAX_MEMBER_BYTES else b""
        except OSError as error:
            return Unreadable(file, f"cannot be read ({error.strerror or error})")
        try:
            check_size(file.parent, file.name, size)
            return preprocessing.decode(content)
        except MemoryError:
            raise
        except Exception as error:  # Pillow can raise almost any error on damaged files
            known = error if isinstance(error, DataError) else unusable(file.parent, file.name, error)
            return Unreadable(file, known.problem.removeprefix(f"{file.parent}: {file.name}: ").rstrip("."))

    with ThreadPoolExecutor(available_cores(), thread_name_prefix="decode") as pool:
        for first in range(0, len(files), batch_size):
            batch = files[first : first + batch_size]
            images = list(pool.map(read, batch))
            whole = [image for image in images if not isinstance(image, Unreadable)]
            answers = _classify(restored, np.stack(whole), top) if whole else iter(())
            for file, image in zip(batch, images, strict=True):
                if isinstance(image, Unreadable):
                    yield image
                elif isinstance(file, Path):
                    yield Prediction(file, [(classes[label], share) for label, share in next(answers)], image)
            task.advance(len(batch))


@torch.inference_mode()
def _classify(restored: Restored, images: NDArray[np.uint8], top: int) -> Iterator[list[tuple[int, float]]]:
    """Labels and probabilities for `images`, uint8 [B, C, H, W], best first."""
    batch = restored.preprocessing.model_input(torch.from_numpy(images).to(restored.device))
    with restored.accelerator.autocast():
        logits = restored.model(batch).float()
    shares, labels = (logits.sigmoid() if restored.several_labels else logits.softmax(1)).topk(top)
    for row in zip(labels.tolist(), shares.tolist(), strict=True):
        yield list(zip(*row, strict=True))


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files below `folder`. Symlinks are followed; a folder reached twice is read once."""
    seen: set[tuple[int, int]] = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        status = Path(top).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        for name in names:
            if not is_ignored(name) and Path(name).suffix.lower() in SUFFIXES:
                yield Path(top, name)


@dataclass(frozen=True)
class Predictions:
    """Predictions for all images of a split, in the order of the data set.

    `labels`, `predicted` classes, their probabilities `confidence`, and `loss` (cross-entropy): [N].
    `probabilities`: [N, classes].
    """

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    loss: Tensor
    probabilities: Tensor
    evaluation: Evaluation

    def worst(self, count: int) -> list[int]:
        """Indices of the images with the highest loss, highest first."""
        return self.loss.argsort(descending=True, stable=True)[:count].tolist()

    def mistaken(self, true: int, predicted: int, count: int) -> list[int]:
        """Indices of images of class `true` classified as `predicted`, most confident first."""
        found = torch.nonzero((self.labels == true) & (self.predicted == predicted))[:, 0]
        return found[self.confidence[found].argsort(descending=True, stable=True)][:count].tolist()


def predict_split(restored: Restored, loader: Loader, progress: Progress) -> Predictions:
    """Predict all images of the split of `loader`, in a single process.

    Raises UsageError for multi-label data.
    """
    recorded = _Recorded(restored.model)
    labels: list[Tensor] = []

    def batches() -> Iterator[Batch]:
        for batch in loader.evaluation(restored.config.eval.batch_size):
            labels.append(batch.labels.cpu())
            yield batch

    evaluation = evaluate(
        recorded,
        batches(),
        evaluated_labels(restored.data.meta, restored.device),
        restored.device,
        restored.accelerator.autocast,
        progress,
        total=len(loader),
    )
    if not isinstance(evaluation, Evaluation):
        raise UsageError(
            f"{restored.data.meta.name}: an image may have several labels, and there is no one wrong class.",
            "See the average precision of each class.",
        )
    logits, true = torch.cat(recorded.logits), torch.cat(labels)
    probabilities = logits.softmax(1)
    confidence, predicted = probabilities.max(1)
    loss = F.cross_entropy(logits, true, reduction="none")
    return Predictions(true, predicted, confidence, loss, probabilities, evaluation)


class _Recorded(nn.Module):
    """Wrapper that stores the logits of all its calls, as float32 on the CPU."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.logits: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        self.logits.append(logits.float().cpu())
        return logits


def write_csv(
    path: Path, predictions: Iterable[Prediction], top: int, classes: Sequence[str] | None = None
) -> int:
    """Write `predictions` to a CSV file as they are made, and return the number of images.

    The columns are file, class_1, probability_1, class_2, …. With `classes`, for multi-label data, they are
    file, labels (the predicted ones, separated by "|") and a probability for each class. A regular file
    appears only when it is complete; "-" means standard output. A name that a spreadsheet would take for a
    formula gets a leading apostrophe, and bytes that are not valid UTF-8 are written as \\xNN. Raises
    UserError if the file cannot be written.
    """
    count = 0
    header = [f"{column}_{rank}" for rank in range(1, top + 1) for column in ("class", "probability")]
    if classes is not None:
        header = ["labels", *(f"probability_{name}" for name in classes)]
    try:
        with _opened(path) as file:
            writer = csv.writer(file)
            writer.writerow(["file", *map(_cell, header)])
            for prediction in predictions:
                cells = [cell for name, share in prediction.top for cell in (_cell(name), f"{share:.6f}")]
                if classes is not None:
                    shares = dict(prediction.top)
                    labels = "|".join(name for name in classes if shares[name] >= THRESHOLD)
                    cells = [_cell(labels), *(f"{shares[name]:.6f}" for name in classes)]
                writer.writerow([_cell(str(prediction.file)), *cells])
                count += 1
    except BrokenPipeError:
        raise
    except OSError as error:
        raise disk_error(error, path) from error
    return count


STANDARD_OUTPUT = tuple(map(Path, ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")))

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def is_stream(path: Path) -> bool:
    """True for standard output, a pipe or a device, which are written to directly instead of replaced."""
    return path in STANDARD_OUTPUT or (path.exists() and not path.is_file())


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if path in STANDARD_OUTPUT:
        yield sys.stdout
        sys.stdout.flush()
        return
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if is_stream(path):
        with path.open("w", newline="", encoding="utf-8") as file:
            yield file
        return
    path = path.resolve()  # replace the target of a symlink, not the symlink
    make_folder(path.parent)
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        yield file


def _cell(text: str) -> str:
    """`text` as a CSV cell that spreadsheets do not evaluate as a formula."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return f"'{text}" if text.startswith(_FORMULA) else text


def prediction_grid(predictions: Sequence[Prediction]) -> Image.Image:
    """Picture of the images as decoded for the model, each above its most likely class and probability.

    Small images are enlarged by an integer factor, large ones are scaled down.
    """
    _, height, width = predictions[0].pixels.shape
    largest = max(height, width)
    size = scaled_size(height, width, CELL_SIDE // largest or CELL_SIDE / largest)
    cells = []
    for prediction in predictions:
        name, probability = prediction.top[0]
        color = "black" if probability >= 0.5 else "#a04000"
        cells.append((prediction.pixels, [(name, "black"), (f"{probability:.1%}", color)]))
    return captioned_grid(cells, size)
