"""Reading exported models back: `load_exported` for users of this package, and what checks each format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from neuscale.config import config_from_yaml
from neuscale.errors import CheckpointError
from neuscale.evaluation.classifier import Classifier
from neuscale.evaluation.preprocessing import Preprocessing
from neuscale.models.registry import create_model
from neuscale.models.weights import load_weights

RECORD = "model.json"
FILES = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}


def load_exported(folder: str | Path) -> Classifier:
    """The model in a folder that `neuscale export --to safetensors` made, on the CPU, for evaluation.

    Raises CheckpointError where there is none, or it is damaged.
    """
    folder = Path(folder)
    record = read_record(folder)
    try:
        preprocessing = Preprocessing(**record["preprocessing"])
        classes: list[str] = record["classes"]
        config = config_from_yaml(record["config"], [], str(folder / RECORD))
        state = load_file(folder / FILES["safetensors"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder / FILES['safetensors']}: there is no such file.", "Export it: --to safetensors."
        ) from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise CheckpointError(f"{folder}: is no export of a model ({error}).", "Export it again.") from error
    model = create_model(
        config.model, preprocessing.image_size, preprocessing.channels, len(classes), config.run.seed
    )
    load_weights(model, state, str(folder))
    return Classifier(model, preprocessing, classes).eval()


def read_record(folder: Path) -> dict[str, Any]:
    """What `model.json` in an exported folder says. Raises CheckpointError."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / RECORD}: not readable ({error}).", "Export the run again."
        ) from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{folder / RECORD}: holds no record of a model.", "Export the run again.")
    return record


def reloaded(kind: str, folder: Path) -> Callable[[Tensor], Tensor]:
    """The model read back from its file: uint8 [B, C, H, W] → logits [B, classes]."""
    if kind == "safetensors":
        return load_exported(folder)
    if kind == "torch":
        return torch.export.load(folder / FILES[kind]).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILES[kind], providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run
