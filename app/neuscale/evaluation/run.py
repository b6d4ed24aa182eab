"""Evaluating a run: its model, a checkpoint of it, and its data."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from neuscale.config import Config
from neuscale.data.choose import choose_loader, create_loader
from neuscale.data.loader import Loader
from neuscale.data.prepared import Dataset
from neuscale.errors import CheckpointError
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.models.fused import choose_ops, fuse
from neuscale.models.registry import create_model
from neuscale.models.weights import load_weights, read_weights
from neuscale.progress import Progress, Silent
from neuscale.runs.folder import RunFolder
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.device import create_accelerator, resolve_device, share_of
from neuscale.training.train import open_run_data


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation, the weights it was made with, and the names of the classes."""

    evaluation: Evaluation
    checkpoint: str
    step: int | None
    classes: list[str]
    is_main: bool


@dataclass(frozen=True)
class OpenedRun:
    """A run's model with the weights of a checkpoint, on its device, and the loader of a split."""

    config: Config
    data: Dataset
    model: nn.Module
    loader: Loader
    accelerator: Accelerator
    checkpoint: str
    step: int | None


def open_run(
    run: RunFolder, checkpoint: str, split: str, device: str | None, progress: Progress, weights: str = "auto"
) -> OpenedRun:
    """`run` at `checkpoint` ("best", "last", or a path), for a split of its data.

    `weights`: "raw", "ema" (their moving average), or "auto": the average where there is one.
    `device`: cpu, cuda or mps; None takes what there is. Raises UsageError or CheckpointError.
    """
    config = run.config()
    # Not where it was trained: wherever this is.
    kind = resolve_device(device or "auto")
    precision = config.train.precision
    accelerator = create_accelerator(kind, "auto" if kind == "cpu" and precision == "fp16" else precision)
    path, step = _find(run, checkpoint)
    state = read_weights(path, {"auto": None, "raw": False, "ema": True}[weights])
    data = open_run_data(config, progress if accelerator.is_main_process else Silent())
    place: torch.device = accelerator.device
    choice = choose_loader(config.data, data, place)
    loader = create_loader(choice, config.data, data, split, place, share_of(accelerator))
    model = create_model(
        config.model, loader.size, data.meta.channels, data.meta.num_classes, config.run.seed
    )
    load_weights(model, state, str(path))
    if choose_ops(config.model, place).kind == "fused":
        fuse(model, place)
    return OpenedRun(config, data, model.to(place), loader, accelerator, str(path), step)


def evaluate_run(
    run: RunFolder, checkpoint: str, split: str, device: str | None, progress: Progress, weights: str = "auto"
) -> EvaluatedRun:
    """Evaluates `run`, opened as `open_run` says, on all images of a split.

    All processes of a distributed evaluation call this and get the same numbers.
    """
    opened = open_run(run, checkpoint, split, device, progress, weights)
    accelerator, meta = opened.accelerator, opened.data.meta
    result = evaluate(
        opened.model,
        opened.loader.evaluation(opened.config.eval.batch_size),
        meta.num_classes,
        accelerator.device,
        accelerator.autocast,
        progress if accelerator.is_main_process else Silent(),
        total=len(opened.loader) // accelerator.num_processes,
    )
    return EvaluatedRun(result, opened.checkpoint, opened.step, meta.classes, accelerator.is_main_process)


def _find(run: RunFolder, checkpoint: str) -> tuple[Path, int | None]:
    """The weights' path and the step they are of, where that is known."""
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
            f"{run.path}: has no checkpoint yet.", f"Go on training: neuscale train --resume {run.argument}"
        )
    else:
        path = paths[-1] if checkpoint == "last" else folder.best_path() or paths[-1]
    try:
        return path, open_checkpoint(path).step
    except CheckpointError as error:
        others = ", ".join(p.name for p in reversed(paths) if p.absolute() != path.absolute())
        raise CheckpointError(error.problem, f"Others of this run: {others}." if others else "") from error
