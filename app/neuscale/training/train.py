"""A whole training run: data, folder, manifest, loop, and how it ended."""

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from neuscale.config import Config
from neuscale.data.catalog import CATALOG
from neuscale.data.listed import ListedDataset, listed_path
from neuscale.data.listed_writer import list_images
from neuscale.data.packed import PackedDataset, packed_path
from neuscale.data.prepare import prepare
from neuscale.data.prepared import Dataset, is_prepared, prepared_names
from neuscale.data.stage import staged_for_training
from neuscale.errors import DataError, UsageError, UserError
from neuscale.models.registry import check_arch
from neuscale.paths import data_root
from neuscale.progress import Progress, Silent
from neuscale.runs.folder import RunFolder, create_run
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.device import (
    be_deterministic,
    create_accelerator,
    device_name,
    resolve_precision,
)
from neuscale.training.outcome import Outcome
from neuscale.training.record import RunRecord
from neuscale.training.resume import check_same_data, check_same_run
from neuscale.training.tracking import Tracker
from neuscale.training.trainer import Trainer
from neuscale.training.wandb_run import check_wandb


@dataclass(frozen=True)
class TrainedRun:
    """A run and how its training ended; `is_main`: whether this process speaks for the run."""

    run: RunFolder
    outcome: Outcome
    is_main: bool


def open_data(config: Config, progress: Progress) -> Dataset:
    """The data set of a configuration, prepared and staged first where that is due.

    Packed, unless it is kept as files only or `data.loader=files` asks for those.
    Raises UsageError or DataError that says how to get it.
    """
    data = _prepared_data(config, progress)
    if isinstance(data, ListedDataset):
        return data
    return staged_for_training(data, config.data.stage, progress)


def open_run_data(config: Config, progress: Progress) -> Dataset:
    """The data set of a run that was trained: as it is prepared, whatever has become of its source."""
    if is_prepared(config.data.name):
        config = replace(config, data=replace(config.data, source=None))
    return open_data(config, progress)


def _prepared_data(config: Config, progress: Progress) -> Dataset:
    name, loader = config.data.name, config.data.loader
    source = Path(config.data.source) if config.data.source is not None else None
    listed = listed_path(name)
    if loader == "files" or (loader == "auto" and not packed_path(name).is_dir() and listed.is_dir()):
        if source is None and listed.is_dir():
            return ListedDataset.open(listed)
        if source is not None:
            entry = name if name in CATALOG else "image_folder"
            size = config.data.image_size if not listed.is_dir() else None
            return list_images(entry, source=source, size=size, save_as=name, progress=progress)
        raise UsageError(
            f"data.loader=files: the images of {name} are not kept as files in {data_root()}.",
            f"List them: neuscale data prepare image_folder --layout files --source FOLDER --save-as {name}",
        )
    if source is None and packed_path(name).is_dir():
        return PackedDataset.open(packed_path(name))
    try:
        if name in CATALOG and (source is not None or CATALOG[name].files):
            return prepare(name, source=source, save_as=name, progress=progress)
        if source is not None:
            return prepare("image_folder", source=source, save_as=name, progress=progress)
    except DataError as error:
        if packed_path(name).is_dir() and source is not None:  # of another source
            raise DataError(error.problem, "Give this data another name: data.name=NAME.") from error
        raise
    raise UsageError(
        f"data.name={name}: no such data set is prepared in {data_root()}"
        f" (there: {', '.join(prepared_names()) or 'none'}).",
        f"Prepare it: neuscale data prepare image_folder --source FOLDER --save-as {name};"
        " or name the folder here: data.source=FOLDER.",
    )


def train(config: Config, resume: RunFolder | None = None, progress: Progress | None = None) -> TrainedRun:
    """Trains `config` in a new run folder, or goes on with `resume` from its newest intact checkpoint.

    All processes of a distributed run call this. Raises UserError.
    """
    if config.run.deterministic:
        be_deterministic()
    accelerator = create_accelerator(config.run.device, config.train.precision)
    progress = progress if progress is not None and accelerator.is_main_process else Silent()
    check_arch(config.model)
    check_wandb(config.tracking)
    data = open_data(config, progress)
    if resume is not None:
        check_same_run(config, resume)
        check_same_data(data, resume)
    trainer = Trainer(config, data, accelerator, progress)
    run = _shared_run(config, resume, accelerator)
    try:
        with run.held() if accelerator.is_main_process else nullcontext():
            return _train_in(run, trainer, resume is not None, progress)
    except BaseException:
        if accelerator.is_main_process and not run.manifest_file.exists():
            shutil.rmtree(run.path, ignore_errors=True)  # it has not begun: its name is free again
        raise


def _train_in(run: RunFolder, trainer: Trainer, resume: bool, progress: Progress) -> TrainedRun:
    config, data, accelerator = trainer.config, trainer.data, trainer.accelerator
    milestones = [epoch * trainer.steps_per_epoch for epoch in config.checkpoint.milestones]
    checkpoints = CheckpointFolder(run.checkpoints, config.checkpoint.keep_last, milestones)
    record = RunRecord(run, trainer)
    checkpoint = checkpoints.newest(progress.warning) if resume else None
    if checkpoint is not None:
        trainer.load(checkpoint)
    elif resume and run.manifest_file.exists():
        progress.message("No checkpoint yet: starting at the beginning.")
    if resume:
        record.goes_on(trainer.step)
    _describe(run, trainer, progress)
    if trainer.is_over():
        progress.message("It is finished already; to train longer, raise train.epochs.")
        return TrainedRun(run, trainer.outcome(), accelerator.is_main_process)

    if resume and accelerator.is_main_process:
        run.store(config)  # what was changed for the rest of the run
    record.begins()
    tracker = None
    try:
        tracker = Tracker(run, config, data.meta.classes, trainer.step, accelerator.is_main_process)
        outcome = trainer.fit(checkpoints, tracker)
        record.ends(outcome)
    except BaseException as error:
        record.fails(error)
        raise
    finally:
        if tracker is not None:
            tracker.close()
        record.write(ended=True)
    return TrainedRun(run, outcome, accelerator.is_main_process)


def _shared_run(config: Config, resume: RunFolder | None, accelerator: Accelerator) -> RunFolder:
    """The run folder, made by the main process and told to the others."""
    if resume is not None:
        return resume
    accelerator.wait_for_everyone()  # nobody still looks for a run of this name
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            answer[0] = str(create_run(config).path)
        except UserError as error:
            answer[0] = error
    broadcast_object_list(answer)
    if isinstance(answer[0], UserError):
        raise answer[0]
    return RunFolder(Path(answer[0]))


def _describe(run: RunFolder, trainer: Trainer, progress: Progress) -> None:
    data, accelerator = trainer.data, trainer.accelerator
    processes = accelerator.num_processes
    precision = resolve_precision(trainer.config.train.precision, accelerator.device.type)
    counts, batch_size = data.meta.counts, trainer.config.train.global_batch_size
    millions = trainer.parameters / 1e6
    size = f"{millions:.1f} M" if millions >= 0.1 else f"{trainer.parameters:,}"
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
        progress.message(f"going on after step {trainer.step:,} of {trainer.total_steps:,}")
