"""Evaluating a run: its model, a checkpoint of it, and its data."""

from dataclasses import dataclass
from pathlib import Path

from neuscale.data.loader import ResidentLoader
from neuscale.errors import CheckpointError, UsageError
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.models.registry import create_model
from neuscale.models.weights import load_weights, read_weights
from neuscale.progress import Progress, Silent
from neuscale.runs.folder import RunFolder
from neuscale.training.checkpoint import CheckpointFolder, open_checkpoint
from neuscale.training.device import create_accelerator, share_of
from neuscale.training.train import open_data


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation, the weights it was made with, and the names of the classes."""

    evaluation: Evaluation
    checkpoint: str
    step: int | None
    classes: list[str]
    is_main: bool


def evaluate_run(
    run: RunFolder, checkpoint: str, split: str, device: str | None, progress: Progress
) -> EvaluatedRun:
    """Evaluates `checkpoint` ("best", "last", or a path) of `run` on a split of its data.

    `device`: instead of the run's own. Raises UsageError or CheckpointError. All processes
    of a distributed evaluation call this and get the same numbers.
    """
    config = run.config()
    kind = device or config.run.device
    accelerator = create_accelerator(kind, config.train.precision if kind != "cpu" else "auto")
    progress = progress if accelerator.is_main_process else Silent()
    path, step = _find(run, checkpoint)
    state = read_weights(path)
    data = open_data(config, progress)
    loader = ResidentLoader(data, split, config.data.image_size, accelerator.device, share_of(accelerator))
    model = create_model(
        config.model, loader.size, data.meta.channels, data.meta.num_classes, config.run.seed
    )
    load_weights(model, state, str(path))
    result = evaluate(
        model.to(accelerator.device),
        loader.evaluation(config.eval.batch_size),
        data.meta.num_classes,
        accelerator.device,
        accelerator.autocast,
        progress,
        total=len(loader) // accelerator.num_processes,
    )
    return EvaluatedRun(result, str(path), step, data.meta.classes, accelerator.is_main_process)


def _find(run: RunFolder, checkpoint: str) -> tuple[Path, int | None]:
    """The weights' path and the step they are of, where that is known."""
    folder = CheckpointFolder(run.checkpoints)
    if checkpoint not in ("best", "last"):
        path = Path(checkpoint).expanduser()
        inside = run.checkpoints / checkpoint
        path = inside if not path.exists() and inside.exists() else path
        if (path / "checkpoint.json").is_file():
            return path, open_checkpoint(path).step
        return path, None
    paths = folder.paths()
    if not paths:
        raise CheckpointError(f"{run.path}: has no checkpoint yet.", f"neuscale train --resume {run.name}")
    path = paths[-1] if checkpoint == "last" else folder.best_path() or paths[-1]
    try:
        return path, open_checkpoint(path).step
    except CheckpointError as error:
        others = [p.name for p in paths if p != path]
        fix = f"Try another: --checkpoint {others[-1]}." if others else ""
        raise CheckpointError(error.problem, fix) from error


def check_split(split: str) -> str:
    """`split` if there is one of that name. Raises UsageError."""
    if split not in ("train", "val"):
        raise UsageError(f"--split {split}: expected train or val.")
    return split
