"""Evaluating a run: its model, a checkpoint of it, and its data."""

from dataclasses import dataclass

from neuscale.data.choose import choose_loader, create_loader
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.evaluation.restore import restore
from neuscale.progress import Progress, Silent
from neuscale.runs.folder import RunFolder
from neuscale.training.device import share_of


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation, the weights it was made with, and the names of the classes."""

    evaluation: Evaluation
    checkpoint: str
    step: int | None
    weights: str
    classes: list[str]
    is_main: bool


def evaluate_run(
    run: RunFolder, checkpoint: str, split: str, device: str | None, progress: Progress, weights: str = "auto"
) -> EvaluatedRun:
    """Evaluates `checkpoint` of `run` on a split of its data; arguments and errors as in `restore`.

    All processes of a distributed evaluation call this and get the same numbers.
    """
    restored = restore(run, checkpoint, weights, device, progress)
    accelerator, data, config = restored.accelerator, restored.data, restored.config
    choice = choose_loader(config.data, data, restored.device)
    loader = create_loader(choice, config.data, data, split, restored.device, share_of(accelerator))
    result = evaluate(
        restored.model,
        loader.evaluation(config.eval.batch_size),
        data.meta.num_classes,
        restored.device,
        accelerator.autocast,
        progress if accelerator.is_main_process else Silent(),
        total=len(loader) // accelerator.num_processes,
    )
    return EvaluatedRun(
        result,
        str(restored.checkpoint),
        restored.step,
        restored.weights,
        data.meta.classes,
        accelerator.is_main_process,
    )
