"""What a trained model says about image files."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from neuscale.cluster.cores import available_cores
from neuscale.data.sources.decode import SUFFIXES, unusable
from neuscale.data.sources.file_tree import MAX_MEMBER_BYTES, check_size, is_ignored
from neuscale.errors import DataError
from neuscale.evaluation.restore import Restored
from neuscale.progress import Task


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, best first, each with its probability.

    `pixels`: the image as it was decoded for the model, uint8 [C, H, W].
    """

    file: Path
    top: list[tuple[str, float]]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Unreadable:
    """A path without an image, and why."""

    file: Path
    reason: str


def find_images(paths: Sequence[Path]) -> list[Path | Unreadable]:
    """The image files that `paths` stand for: files as given, folders read to the bottom, sorted by path.

    In folders only files named as images are are taken. A folder without one is Unreadable.
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
    """The `top` likeliest classes of each file, in the order given; a batch of images is held at a time."""
    preprocessing, classes = restored.preprocessing, restored.data.meta.classes
    top = min(top, len(classes))
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
        except Exception as error:  # Pillow raises nearly anything on damaged files
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
    """Labels and probabilities of uint8 [B, C, H, W], best first."""
    batch = restored.preprocessing.model_input(torch.from_numpy(images).to(restored.device))
    with restored.accelerator.autocast():
        logits = restored.model(batch)
    shares, labels = logits.float().softmax(1).topk(top)
    for row in zip(labels.tolist(), shares.tolist(), strict=True):
        yield list(zip(*row, strict=True))


def _images_below(folder: Path) -> Iterator[Path]:
    """Links are followed; a folder that a link leads back to is read once."""
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
