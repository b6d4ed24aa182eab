"""Evaluate a checkpoint of a run on its data."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from neuscale.contention import adaptive_waiting
from neuscale.data.datasets import check_split
from neuscale.data.loaders.choose import choose_loader, create_loader
from neuscale.data.loaders.loader import Loader
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from neuscale.evaluation.evaluate import AnyEvaluation, FlipAveraged, evaluate, evaluated_labels
from neuscale.evaluation.latency import Latency, measure_latency
from neuscale.evaluation.own_metrics import OwnMetrics
from neuscale.inference.restore import Restored, restore
from neuscale.progress import Progress, Silent
from neuscale.runs.folder import RunFolder

# Independent of the run's seed, so that all runs are compared on the same corrupted images.
CORRUPTION_SEED = 0


@dataclass(frozen=True)
class Extras:
    """Options of an evaluation.

    `flip`: average over each image and its mirror image. `limit`: largest number of images, evenly spread
    over the split. `corruptions`: also evaluate on corrupted images. `latency`: batch sizes to time.
    `reliability`: a reliability diagram is wanted; refused for multi-label data.
    """

    flip: bool = False
    limit: int | None = None
    corruptions: bool = False
    latency: tuple[int, ...] = ()
    reliability: bool = False


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation, the weights that were evaluated, and the class names.

    `corrupted`: top-1 (for multi-label data, mAP) by corruption, from the lowest severity to the highest;
    empty if not requested.
    """

    evaluation: AnyEvaluation
    checkpoint: str
    step: int | None
    weights: str
    classes: list[str]
    is_main: bool
    corrupted: dict[str, list[float]]
    latency: list[Latency]


def evaluate_run(
    run: RunFolder,
    checkpoint: str,
    split: str,
    device: str | None,
    progress: Progress,
    weights: str = "auto",
    extras: Extras = Extras(),
) -> EvaluatedRun:
    """Evaluate `checkpoint` of `run` on a split of its data; arguments and errors are as in `restore`.

    In a distributed evaluation all ranks call this and get the same metrics.
    """
    restored = restore(run, checkpoint, weights, device, progress)
    heard = progress if restored.accelerator.is_main_process else Silent()
    with adaptive_waiting(heard.message, restored.device.type):
        return _evaluate_restored_run(restored, split, progress, extras)


def _evaluate_restored_run(
    restored: Restored, split: str, progress: Progress, extras: Extras
) -> EvaluatedRun:
    if extras.reliability and restored.several_labels:
        raise UsageError(
            "`reliability` is of images with one label, and these may have several.", "Remove it."
        )
    if extras.flip:
        restored = restored.with_model(FlipAveraged(restored.model, restored.several_labels))
    loader = evaluation_loader(restored, split)
    chosen = None
    if extras.limit is not None:
        chosen = np.unique(np.linspace(0, len(loader) - 1, min(extras.limit, len(loader))).astype(np.int64))
    return EvaluatedRun(
        evaluate_restored(restored, loader, progress, chosen),
        str(restored.checkpoint),
        restored.step,
        restored.weights,
        restored.data.meta.classes,
        restored.accelerator.is_main_process,
        _corrupted(restored, loader, progress, chosen) if extras.corruptions else {},
        _latency(restored, loader, progress, extras.latency) if extras.latency else [],
    )


def evaluation_loader(restored: Restored, split: str) -> Loader:
    """Loader of a split for this rank. Raises UsageError if the data has no such split."""
    check_split(restored.data, split)
    choice = choose_loader(restored.config.data, restored.data, restored.device)
    share = Rank.current()
    return create_loader(choice, restored.config.data, restored.data, split, restored.device, share)


def evaluate_restored(
    restored: Restored,
    loader: Loader,
    progress: Progress,
    chosen: NDArray[np.int64] | None = None,
    corruption: tuple[str, int] | None = None,
) -> AnyEvaluation:
    """Evaluate a restored model; `chosen`: indices of images, `corruption`: a kind and its severity."""
    accelerator = restored.accelerator
    change = None
    if corruption is not None:
        kind, severity = corruption
        change = partial(corrupt, kind=kind, severity=severity, seed=CORRUPTION_SEED)
    count = len(loader) if chosen is None else len(chosen)
    own = OwnMetrics.of(restored.config.eval, restored.data.meta) if corruption is None else None
    return evaluate(
        restored.model,
        loader.evaluation(restored.config.eval.batch_size, chosen, change),
        evaluated_labels(restored.data.meta, restored.device),
        restored.device,
        accelerator.autocast,
        progress if accelerator.is_main_process else Silent(),
        total=count // accelerator.num_processes,
        metrics=own,
    )


def _corrupted(
    restored: Restored, loader: Loader, progress: Progress, chosen: NDArray[np.int64] | None
) -> dict[str, list[float]]:
    progress = progress if restored.accelerator.is_main_process else Silent()
    found: dict[str, list[float]] = {kind: [] for kind in CORRUPTIONS}
    with progress.task("corrupting", len(CORRUPTIONS) * len(SEVERITIES), "evaluation") as task:
        for kind in CORRUPTIONS:
            for severity in SEVERITIES:
                result = evaluate_restored(restored, loader, Silent(), chosen, (kind, severity))
                found[kind].append(result.headline[1])
                task.advance()
    return found


def _latency(
    restored: Restored, loader: Loader, progress: Progress, batch_sizes: tuple[int, ...]
) -> list[Latency]:
    if restored.accelerator.num_processes > 1:
        raise UsageError(
            "`latency` measures one process, and there are several.", "Evaluate with one process for it."
        )
    most = min(max(batch_sizes), len(loader))
    images = next(iter(loader.evaluation(most))).images
    try:
        return measure_latency(restored.model, images, batch_sizes, restored.accelerator.autocast, progress)
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"`latency`: a batch of {max(batch_sizes):,} does not fit into the device's memory.",
            "Remove the largest batch size.",
        ) from error
