"""The model behind the server: of a run, or of an exported folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from neuscale.data.sources.decode import unusable
from neuscale.distributed.accelerator import resolve_device
from neuscale.errors import CheckpointError, DataError, UsageError, UserError
from neuscale.evaluation.multi_label import THRESHOLD
from neuscale.inference.classifier import FILES, RECORD, Preprocessing, load_exported, read_record
from neuscale.inference.restore import Restored
from neuscale.inference.runtimes import FORMAT_NAMES, check_packages, reloaded


class NotAnImage(Exception):
    """Bytes that cannot be decoded; the message says why."""


@dataclass(frozen=True)
class ServedModel:
    """A classifier of image files.

    `title`: for people. `logits`: uint8 [B, C, H, W] on the CPU → float32 [B, classes] on the CPU.
    """

    title: str
    device: str
    classes: list[str]
    several_labels: bool
    preprocessing: Preprocessing
    logits: Callable[[Tensor], Tensor]

    def decode(self, content: bytes) -> Tensor:
        """An image file's pixels, uint8 [C, H, W]. Raises NotAnImage."""
        try:
            pixels: NDArray[Any] = self.preprocessing.decode(content)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises nearly anything on damaged files
            known = error if isinstance(error, DataError) else unusable(Path(), "image", error)
            raise NotAnImage(known.problem.removeprefix(".: image: ").rstrip(".")) from None
        return torch.from_numpy(pixels.copy())

    def answer(self, logits: Tensor, top: int) -> list[dict[str, str | float]]:
        """The `top` likeliest classes of logits [classes], best first.

        Where an image may have several labels: those with a probability of a half or more. Raises ValueError
        for numbers that are not finite.
        """
        if not logits.isfinite().all():
            raise ValueError("the model gave numbers that are not finite")
        shares = logits.sigmoid() if self.several_labels else logits.softmax(0)
        values, indices = shares.topk(len(self.classes) if self.several_labels else min(top, len(shares)))
        found = [
            {"class": self.classes[index], "probability": share}
            for index, share in zip(indices.tolist(), values.tolist(), strict=True)
        ]
        if self.several_labels:
            return [each for each in found if float(each["probability"]) >= THRESHOLD]
        return found


def served_run(restored: Restored) -> ServedModel:
    """The model of a run."""
    preprocessing, device = restored.preprocessing, restored.device

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            batch = preprocessing.model_input(images.to(device))
            with restored.accelerator.autocast():
                found: Tensor = restored.model(batch).float().cpu()
        return found

    return ServedModel(
        f"{restored.config.model.title} of {restored.run.name}, {restored.checkpoint.name}",
        str(device),
        restored.data.meta.classes,
        restored.several_labels,
        preprocessing,
        logits,
    )


def is_exported(folder: Path) -> bool:
    """True for a folder that `neuscale export` made."""
    return (folder / RECORD).is_file()


def served_export(folder: Path, device: str | None) -> ServedModel:
    """The model in an exported folder; `device` None: the CPU, or for safetensors a GPU where there is one.

    Raises CheckpointError where the folder is damaged, UsageError for a missing package or a device that
    the format cannot use.
    """
    record = read_record(folder)
    try:
        kind = next(kind for kind, file in FILES.items() if file == record["file"])
        preprocessing = Preprocessing(**record["preprocessing"])
        title = f"{record['model']} of {record['run']}, {record['file']}"
        classes, several_labels = list(record["classes"]), bool(record["several_labels"])
    except (StopIteration, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD}: is not an exported model's record ({error}).") from error
    check_packages(kind, running=True)
    if kind != "safetensors" and device not in (None, "cpu"):
        raise UsageError(f"`device` {device}: an export to {FORMAT_NAMES[kind]} is run on the CPU.")
    place = torch.device(resolve_device(device or "auto") if kind == "safetensors" else "cpu")
    try:
        run = reloaded(kind, folder) if kind != "safetensors" else load_exported(folder).to(place)
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise CheckpointError(f"{folder / FILES[kind]}: cannot be read ({error}).") from error

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return run(images.to(place)).cpu()

    return ServedModel(title, str(place), classes, several_labels, preprocessing, logits)
