"""The training loop.

Randomness comes from (seed, epoch, step), the learning rate from the step, so that a run
that goes on from a checkpoint needs nothing but the checkpoint. The loader and the
schedule are ours and are not passed through `Accelerator.prepare`, which would skip or
repeat data on resume and step the schedule once per process.
"""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from neuscale.config import Config
from neuscale.data.choose import check_augment, choose_loader, create_loader
from neuscale.data.order import check_shares, steps_per_epoch
from neuscale.data.prepared import Dataset
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.models.fused import choose_ops, fuse
from neuscale.models.registry import create_model
from neuscale.models.weights import load_starting_weights
from neuscale.progress import Progress, Task
from neuscale.training.checkpoint import Checkpoint, CheckpointFolder
from neuscale.training.device import check_compiler, resolve_precision, share_of
from neuscale.training.drop_path import DropPathDraws
from neuscale.training.ema import WeightAverage
from neuscale.training.flops import peak_tflops, training_flops
from neuscale.training.layers import freeze, training_mode
from neuscale.training.limit import Deadline
from neuscale.training.micro_batch import accumulation_steps
from neuscale.training.nonfinite import check_finite
from neuscale.training.norm import share_running_statistics
from neuscale.training.optim import create_optimizer
from neuscale.training.outcome import Outcome
from neuscale.training.profiling import StepProfiler
from neuscale.training.saver import BackgroundSaver
from neuscale.training.schedule import lr_at, set_lr
from neuscale.training.state import TrainingState
from neuscale.training.step import OptimizerStep
from neuscale.training.step_log import StepLog
from neuscale.training.stop import StopRequest
from neuscale.training.tracking import Tracker


class Trainer:
    """Trains `config`'s model on `data`; nothing is written before `fit`."""

    def __init__(self, config: Config, data: Dataset, accelerator: Accelerator, progress: Progress) -> None:
        self.config, self.data, self.accelerator, self.progress = config, data, accelerator, progress
        device, share = accelerator.device, share_of(accelerator)
        train = config.train
        check_shares(train.global_batch_size, share.processes)
        parts = accumulation_steps(train.micro_batch, train.global_batch_size, share.processes)
        deadline = Deadline(config.run.time_limit)
        self.ops = choose_ops(config.model, device)
        self.choice = choose_loader(config.data, data, device)
        check_augment(config.augment, self.choice)
        self.loader = create_loader(self.choice, config.data, data, "train", device, share)
        self.val_loader = create_loader(self.choice, config.data, data, "val", device, share)
        self.steps_per_epoch = steps_per_epoch(len(self.loader), train.global_batch_size)
        self.total_steps = self.steps_per_epoch * train.epochs
        if train.max_steps is not None:
            self.total_steps = min(self.total_steps, train.max_steps)

        meta = data.meta
        sizes = (self.loader.size, meta.channels, meta.num_classes)
        model = create_model(config.model, *sizes, config.run.seed)
        if config.model.weights is not None:
            progress.message(load_starting_weights(model, config.model, *sizes))
        flops = training_flops(model, meta.channels, self.loader.size)
        peak = peak_tflops(device, resolve_precision(train.precision, device.type))
        self.log = StepLog(accelerator, train.global_batch_size, flops, peak)
        self._frozen = freeze(model, train)
        if self.ops.kind == "fused":
            fuse(model, device, config.run.deterministic)
        self.raw_model = model.to(device)
        if train.channels_last:
            self.raw_model.to(memory_format=torch.channels_last)
        if train.compile:
            check_compiler()
            self.raw_model.compile()  # in place: the names of the parameters stay
        self.parameters = sum(p.numel() for p in model.parameters())
        self.model, self.optimizer = accelerator.prepare(model, create_optimizer(config.optim, model))
        average = WeightAverage(self.raw_model, train.ema_decay) if train.ema_decay else None
        drop_path = DropPathDraws(model, config.run.seed, len(self.loader), device)
        self.optimize = OptimizerStep(
            config, self.model, self.optimizer, drop_path, average, accelerator, progress, parts
        )

        self.state = TrainingState(parts=parts)
        self.last: Evaluation | None = None
        self.stopped_by: str | None = None
        self._deadline = deadline
        self._began = (0, 0.0)  # step and seconds of training of this process's first step
        self._saved_step = -1
        self._saver = BackgroundSaver()

    @property
    def step(self) -> int:
        """Steps done, over all resumes."""
        return self.state.step

    def load(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of this run."""
        self.state = TrainingState.load(checkpoint, self.raw_model, self.optimizer, self.optimize.average)
        if self.accelerator.scaler is not None and self.state.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.state.scaler)
        if self.accelerator.is_main_process:  # the sums are those of all processes; one carries them on
            assert self.state.window is not None
            self.log.window.sums.copy_(self.state.window)
        steps = self.state.window_steps
        self.log.window.steps = steps if steps is not None else self.step % self.config.train.log_every_steps
        if self.config.train.micro_batch == "auto":
            share = self.config.train.global_batch_size // self.accelerator.num_processes
            self.optimize.parts = self.state.parts if share % self.state.parts == 0 else 1
        self.log.clock.seconds = self.state.seconds
        self._began = (self.step, self.log.clock.seconds)
        self._saved_step = self.step

    def fit(self, checkpoints: CheckpointFolder, tracker: Tracker) -> Outcome:
        """Trains to the end, or until something asks for a stop; saves either way."""
        self._checkpoints = checkpoints
        training_mode(self.model, self._frozen)
        batch_size = self.config.train.global_batch_size
        folder = checkpoints.folder.parent / "profile"
        profiled = self.config.train.profile and self.accelerator.is_main_process
        self.log.clock.start(self.step)
        try:
            with (
                StopRequest(self.accelerator.device, self._deadline) as stop,
                StepProfiler(folder, self.accelerator.device, profiled, self.progress) as profiler,
            ):
                with self.progress.task(
                    "training", (self.total_steps - self.step) * batch_size, "img"
                ) as task:
                    while not self.is_over() and self.stopped_by is None:
                        self._epoch(tracker, stop, profiler, task)
                if self._saved_step != self.step:
                    self._save(tracker, {}, is_best=False)
                self._saver.wait()
        finally:
            self._saver.close()
        self.accelerator.wait_for_everyone()
        return self.outcome()

    def outcome(self) -> Outcome:
        """How far training has come."""
        done, seconds = self.step - self._began[0], self.log.clock.seconds - self._began[1]
        return Outcome(
            steps=self.step,
            epochs=self.step // self.steps_per_epoch,
            seconds=self.log.clock.seconds,
            images_per_second=done * self.config.train.global_batch_size / seconds if seconds else 0.0,
            last=self.last,
            best_top1=self.state.best_top1,
            stopped_by=self.stopped_by,
        )

    def is_over(self) -> bool:
        """Whether all steps are done, or patience is at its end."""
        patience = self.config.train.patience
        return self.step >= self.total_steps or (patience is not None and self.state.stale >= patience)

    def _epoch(self, tracker: Tracker, stop: StopRequest, profiler: StepProfiler, task: Task) -> None:
        """The rest of an epoch, or as much of it as there is before a stop."""
        config, batch_size = self.config, self.config.train.global_batch_size
        epoch, first = divmod(self.step, self.steps_per_epoch)
        steps = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
        batches = self.loader.training(
            config.augment, config.run.seed, epoch, first, steps, batch_size, self.optimize.parts
        )
        for step_batches in self.log.clock.timed(batches):
            if self.step == self._began[0]:
                if self.accelerator.device.type == "cuda":
                    self.optimize.fit_memory(epoch, first, step_batches)
                self.optimize.settle(epoch, first, step_batches)
            if self.step == 0:
                tracker.images(step_batches[0].images, self.loader)
            set_lr(self.optimizer, self._lr(self.step))
            sums = self.optimize(self.step, epoch, self.step - epoch * self.steps_per_epoch, step_batches)
            self.log.window.add(self.step, sums)
            self.state.step += 1
            profiler.step()
            task.advance(batch_size)
            if self.step % config.train.log_every_steps == 0:
                self._log(tracker, task)
            every = config.checkpoint.every_steps
            if every and self.step % every == 0 and self.step % self.steps_per_epoch:
                self._save(tracker, {}, is_best=False)
            if self.step < self.total_steps and stop.agreed(self.step, self._saver.seconds):
                self.stopped_by = stop.signal or "a signal to another process"
                break
        if self.step % self.steps_per_epoch == 0 or self.step == self.total_steps:
            self._end_epoch(tracker, epoch)

    def _lr(self, step: int) -> float:
        return lr_at(self.config.optim, step, self.steps_per_epoch, self.total_steps)

    def _log(self, tracker: Tracker, task: Task) -> None:
        values = self.log.values(self.step, self._lr(self.step - 1), self._check_finite)
        tracker.train(self.step, values)
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        task.note(f"epoch {epoch} of {epochs}, loss {values['loss']:.3f}")

    def _check_finite(self) -> None:
        bad: Tensor = self.accelerator.gather(self.log.window.bad.reshape(1))
        check_finite(
            bad,
            self.config,
            len(self.loader),
            self.steps_per_epoch,
            self._checkpoints,
            write=self.accelerator.is_main_process,
        )

    def _end_epoch(self, tracker: Tracker, epoch: int) -> None:
        """Evaluates where it is due, and saves."""
        over = self.step >= self.total_steps
        due = over or (epoch + 1) % self.config.eval.every_epochs == 0
        metrics: dict[str, float] = {}
        is_best = False
        if due:
            self._check_finite()
            self.last = self._evaluate()
            metrics = self.last.scalars()
            is_best = self.last.top1 > self.state.best_top1
            self.state.best_top1 = max(self.state.best_top1, self.last.top1)
            self.state.stale = 0 if is_best else self.state.stale + 1
            tracker.evaluation(self.step, self.last)
            self.progress.message(
                f"epoch {epoch + 1}: top-1 {self.last.top1:.2%}, loss {self.last.loss:.3f}"
                f" on {self.last.samples:,} images"
            )
            if not over and self.is_over():
                self.progress.message(f"no better top-1 in {self.state.stale} evaluations: this is the end")
        every = self.config.checkpoint.every_steps
        if due or not every or self.step % every == 0 or (epoch + 1) in self.config.checkpoint.milestones:
            self._save(tracker, metrics, is_best)

    def _evaluate(self) -> Evaluation:
        """Evaluates the weights, or their average where there is one."""
        average = self.optimize.average
        if average is not None:
            average.swap()
        share_running_statistics(self.raw_model)
        try:
            return evaluate(
                self.raw_model,
                self.val_loader.evaluation(self.config.eval.batch_size),
                self.data.meta.num_classes,
                self.accelerator.device,
                self.accelerator.autocast,
                self.progress,
                total=len(self.val_loader) // self.accelerator.num_processes,
            )
        finally:
            if average is not None:
                average.swap()
            training_mode(self.model, self._frozen)

    def _save(self, tracker: Tracker, metrics: dict[str, float], is_best: bool) -> None:
        self._check_finite()
        window: Tensor = self.accelerator.reduce(self.log.window.sums.clone(), "sum")
        self._saved_step = self.step
        if not self.accelerator.is_main_process:
            return
        self.state.window, self.state.window_steps = window, self.log.window.steps
        self.state.seconds = self.log.clock.seconds
        self.state.parts = self.optimize.parts
        scaler = self.accelerator.scaler
        self.state.scaler = scaler.state_dict() if scaler is not None else None
        content = self.state.content(self.raw_model, self.optimizer, self.optimize.average)
        step, epoch = self.step, self.step // self.steps_per_epoch

        def write(copy: Any) -> None:
            tracker.sync()
            self._checkpoints.save(
                step, epoch, copy["weights"], copy["training"], metrics, is_best, copy["average"]
            )

        self._saver.save(write, content)
