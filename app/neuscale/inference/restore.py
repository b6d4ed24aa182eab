"""Restore a trained model from its run: configuration, data set and weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from neuscale.config import Config
from neuscale.data.datasets import Dataset
from neuscale.data.open import open_run_data
from neuscale.distributed.accelerator import Accelerator, create_accelerator, resolve_device
from neuscale.errors import CheckpointError
from neuscale.evaluation.evaluate import normalized_as
from neuscale.inference.classifier import Preprocessing
from neuscale.models.fused import choose_ops, fuse
from neuscale.models.registry import create_model
from neuscale.models.weights import load_weights
from neuscale.models.weights_file import read_weights
from neuscale.progress import Progress, Silent
from neuscale.runs.folder import RunFolder
from neuscale.runs.own_code import use_code
from neuscale.training.checkpoint import AVERAGE, CheckpointFolder, open_checkpoint

_AVERAGED = {"auto": None, "raw": False, "ema": True}


@dataclass(frozen=True)
class Restored:
    """A run's model on its device, in evaluation mode, and the data set that it was trained on.

    `weights`: "raw", "ema" (their moving average), or "file" for a weights file, for which `step` is None.
    """

    run: RunFolder
    config: Config
    data: Dataset
    accelerator: Accelerator
    model: nn.Module
    checkpoint: Path
    step: int | None
    weights: str

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self.accelerator.device
        return device

    def with_model(self, model: nn.Module) -> "Restored":
        """A copy with another model, such as a wrapper around its own."""
        return replace(self, model=model.to(self.device).eval())

    def with_data(self, data: Dataset) -> "Restored":
        """A copy with another data set. Raises UsageError if its classes or channels differ."""
        size = self.preprocessing.image_size
        config = replace(self.config, data=replace(self.config.data, image_size=size))
        return replace(self, config=config, data=normalized_as(data, self.data))

    @property
    def several_labels(self) -> bool:
        """True for multi-label data, where each class has an independent probability."""
        return self.data.meta.label_sets is not None

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of validation."""
        return Preprocessing.of(self.config, self.data)


def restore(
    run: RunFolder,
    checkpoint: str,
    weights: str,
    device: str | None,
    progress: Progress,
    *,
    stage: bool = True,
    eager: bool = False,
) -> Restored:
    """Restore the model of `run` with the weights of `checkpoint` ("best", "last", a name or a path).

    `weights`: "raw", "ema", or "auto": the moving average if there is one. `device`: cpu, cuda or mps; None
    selects an available one, regardless of the training device. `stage`: allow copying the images to the
    node's local disk first. `eager`: do not use the native ops. Raises UsageError, CheckpointError or
    DataError.
    """
    config = run.config()
    if not stage:
        config.data.stage = "none"
    kind = resolve_device(device or "auto")
    precision = config.train.precision
    accelerator = create_accelerator(kind, "auto" if kind == "cpu" and precision == "fp16" else precision)
    path, step = _find(run, checkpoint)
    averaged = _AVERAGED[weights]
    state = read_weights(path, averaged)
    data = open_run_data(config, progress if accelerator.is_main_process else Silent())
    size = Preprocessing.of(config, data).image_size
    use_code(run)
    model = create_model(config.model, size, data.meta.channels, data.meta.num_classes, config.run.seed)
    load_weights(model, state, str(path))
    place: torch.device = accelerator.device
    if not eager and choose_ops(config.model, place).kind == "fused":
        fuse(model, place)
    used = "file"
    if path.is_dir():
        used = "ema" if averaged is not False and (path / AVERAGE).exists() else "raw"
    return Restored(run, config, data, accelerator, model.to(place).eval(), path, step, used)


def _find(run: RunFolder, checkpoint: str) -> tuple[Path, int | None]:
    """Path of the weights, and their step if known."""
    folder = CheckpointFolder(run.checkpoints)
    paths = folder.paths()
    if checkpoint not in ("best", "last"):
        path = Path(checkpoint).expanduser()
        inside = run.checkpoints / checkpoint
        path = inside if not path.exists() and inside.exists() else path
        if path.is_file():
            return path, None
    elif not paths:
        raise CheckpointError(
            f"{run.path}: has no checkpoint yet.", f"Train on: neuscale train --resume {run.argument}"
        )
    else:
        path = paths[-1] if checkpoint == "last" else folder.best_path() or paths[-1]
    try:
        return path, open_checkpoint(path).step
    except CheckpointError as error:
        others = ", ".join(p.name for p in reversed(paths) if p.absolute() != path.absolute())
        raise CheckpointError(error.problem, f"Others of this run: {others}." if others else "") from error
