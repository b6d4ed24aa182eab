"""Run a training: data, run folder, manifest, trainer, and the outcome."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from neuscale.config import Config
from neuscale.contention import adaptive_waiting
from neuscale.data.datasets import is_prepared
from neuscale.data.open import open_data
from neuscale.distributed.accelerator import (
    Accelerator,
    create_accelerator,
    device_name,
    resolve_precision,
)
from neuscale.distributed.rank import gather_values
from neuscale.errors import UserError, WorkerError
from neuscale.progress import Progress, Silent
from neuscale.runs.differences import check_same_data, check_same_run
from neuscale.runs.folder import RunFolder, create_run
from neuscale.runs.own_code import use_code
from neuscale.training.build import starting_config
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.determinism import be_deterministic
from neuscale.training.manifest_writer import ManifestWriter
from neuscale.training.outcome import Outcome
from neuscale.training.tracking.tracker import Tracker
from neuscale.training.trainer import Trainer
from neuscale.training.training_state import go_on
from neuscale.training.validate import validate


@dataclass(frozen=True)
class TrainedRun:
    """A run and the outcome of its training; `is_main`: True in the process that reports it."""

    run: RunFolder
    outcome: Outcome
    is_main: bool


# The caller's function that writes a report of a finished run, to be stored in trackers.
Report = Callable[[RunFolder], Path]

# Seconds to wait for a tracker at the end: of a finished run, and of one that was stopped or failed.
_PATIENCE, _SHORT_PATIENCE = 60.0, 4.0


def train(
    config: Config,
    resume: RunFolder | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> TrainedRun:
    """Train `config` in a new run folder, or resume a run from its newest intact checkpoint.

    `report`: writes the report of a finished run, for trackers that store files.
    All ranks of a distributed run must call this. Raises UserError.
    """
    if config.run.deterministic:
        be_deterministic()
    accelerator = create_accelerator(config.run.device, config.train.precision)
    progress = progress if progress is not None and accelerator.is_main_process else Silent()
    if resume is not None:
        for change in use_code(resume, resume=True):
            progress.warning(f"going on with other code: {change}")
    validate(config, accelerator.num_processes)
    if resume is None:
        config, words = starting_config(config)
        if words is not None:
            progress.message(words)
    section = config.data
    if resume is not None and section.dataset is not None and is_prepared(section.name):
        section = replace(section, dataset=None)  # check_same_data compares it below
    data = open_data(replace(config, data=section), progress)
    if resume is not None:
        check_same_run(config, resume)
        check_same_data(data, resume)
    trainer = Trainer(config, data, accelerator, progress)
    run = _shared_run(config, resume, accelerator)
    try:
        with run.held() if accelerator.is_main_process else nullcontext():
            return _train_in(run, trainer, resume is not None, progress, report)
    except BaseException:
        if accelerator.is_main_process and not run.manifest_file.exists():
            shutil.rmtree(run.path, ignore_errors=True)  # it has not started: its name is free again
        raise


def _train_in(
    run: RunFolder, trainer: Trainer, resume: bool, progress: Progress, report: Report | None
) -> TrainedRun:
    config, data, accelerator = trainer.config, trainer.data, trainer.accelerator
    milestones = [epoch * trainer.steps_per_epoch for epoch in config.checkpoint.milestones]
    checkpoints = CheckpointFolder(run.checkpoints, config.checkpoint.keep_last, milestones)
    manifest = ManifestWriter(run, trainer)
    checkpoint = checkpoints.newest(progress.warning) if resume else None
    if checkpoint is not None:
        go_on(trainer, checkpoint, run.config(), progress)
    elif resume and run.manifest_file.exists():
        progress.message("No checkpoint yet: starting at the beginning.")
    if resume:
        manifest.on_resume(trainer.step)
    _describe(run, trainer, progress)
    if trainer.should_stop() and not trainer.evaluation_due:
        progress.message(_finished_words(trainer))
        return TrainedRun(run, trainer.outcome(), accelerator.is_main_process)

    if resume and accelerator.is_main_process:
        run.store(config)  # what was changed for the rest of the run
    manifest.on_start()
    tracker = None
    try:
        tracker = Tracker(
            run,
            config,
            data.meta.classes,
            trainer.step,
            accelerator.is_main_process,
            trainer.evaluation_due,
            progress,
        )
        with adaptive_waiting(progress.message, accelerator.device.type):
            outcome = trainer.fit(checkpoints, tracker)
        manifest.on_end(outcome)
    except BaseException as error:
        manifest.on_error(error)
        raise
    finally:
        manifest.write(ended=True)
        if tracker is not None:
            _close(tracker, trainer, manifest, report)
    return TrainedRun(run, outcome, accelerator.is_main_process)


def _close(tracker: Tracker, trainer: Trainer, manifest: ManifestWriter, report: Report | None) -> None:
    """Close the tracker, after adding the report of a finished run; record the result in the manifest."""
    finished = manifest.manifest.get("status") == "finished"
    if finished and report is not None and tracker.takes_files:
        try:
            tracker.files([report(manifest.run)])
        except UserError as error:
            trainer.progress.warning(f"no report for the trackers: {error.problem}")
    told = tracker.close(_PATIENCE if finished else _SHORT_PATIENCE)
    if told:
        manifest.manifest["trackers"] = told
        manifest.write(ended=True)


def _finished_words(trainer: Trainer) -> str:
    if trainer.step < trainer.total_steps:
        patience = trainer.best.patience
        return (
            f"It is finished: early stopping ended it, since {trainer.best.words}"
            f" (train.patience={patience}). To train longer, raise train.patience, or set it to null."
        )
    return "It is finished already; to train longer, raise train.epochs."


def _shared_run(config: Config, resume: RunFolder | None, accelerator: Accelerator) -> RunFolder:
    """The run folder, created by the main process."""
    if resume is not None:
        return resume
    accelerator.wait_for_everyone()  # no rank still searches for a run of this name
    path: str | None = None
    error: UserError | None = None
    if accelerator.is_main_process:
        try:
            path = str(create_run(config).path)
        except UserError as raised:
            error = raised
    told = [path, error and error.problem, error and error.fix, error and error.exit_code]
    path, problem, fix, exit_code = gather_values(told, accelerator.device)[0]
    if path is None:
        raise error or WorkerError(problem, fix, exit_code)
    return RunFolder(Path(path))


def _describe(run: RunFolder, trainer: Trainer, progress: Progress) -> None:
    data, accelerator = trainer.data, trainer.accelerator
    processes = accelerator.num_processes
    precision = resolve_precision(trainer.config.train.precision, accelerator.device.type)
    counts, batch_size = data.meta.counts, trainer.config.train.global_batch_size
    parameters = sum(p.numel() for p in trainer.raw_model.parameters())
    size = f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters:,}"
    progress.message(
        f"{trainer.config.model.title} with {size} parameters"
        f" on {data.meta.title}: {counts['train']:,} training and {counts['val']:,} validation images"
    )
    progress.message(
        f"{processes} process{'es' if processes > 1 else ''} on {device_name(accelerator)},"
        f" {precision}; {trainer.total_steps:,} steps of {batch_size} images"
    )
    progress.message(f"loader {trainer.choice.kind}: {trainer.choice.reason}")
    if trainer.ops.kind == "fused":
        progress.message("fused native ops")
    elif trainer.ops.reason:
        progress.message(f"no native ops, so eager: {trainer.ops.reason}")
    progress.message(f"run folder {run.path}")
    if trainer.step:
        progress.message(f"resuming at step {trainer.step:,} of {trainer.total_steps:,}")
