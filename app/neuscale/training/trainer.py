"""The training loop: `fit` → `train_epoch` → `train_step`.

Random choices follow from (seed, epoch, position) and the learning rate from the step, so a run
resumes from a checkpoint alone. The loader and the schedule are not passed through
`Accelerator.prepare`, which would skip or repeat data on resume and step it once per process.
"""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuscale.config import Config
from neuscale.data.datasets import Dataset
from neuscale.data.loaders.choose import check_augment, choose_loader, create_loader
from neuscale.data.loaders.loader import Batch
from neuscale.data.sampling import derived_seed, steps_per_epoch
from neuscale.distributed.accelerator import Accelerator, resolve_precision
from neuscale.distributed.rank import Rank
from neuscale.evaluation.evaluate import AnyEvaluation, evaluate, evaluated_labels, share_running_statistics
from neuscale.evaluation.own_metrics import OwnMetrics
from neuscale.models.fused import choose_ops
from neuscale.progress import Progress, Task
from neuscale.training.accumulation import Accumulation, check_statistics
from neuscale.training.background_saver import BackgroundSaver
from neuscale.training.build import build_model
from neuscale.training.checkpoint import CheckpointFolder
from neuscale.training.determinism import seed_generator
from neuscale.training.drop_path import DropPathDraws
from neuscale.training.ema import WeightAverage
from neuscale.training.flops import peak_tflops
from neuscale.training.loss import TrainingLoss, check_finite
from neuscale.training.lr_schedule import Span, lr_at, set_lr
from neuscale.training.metrics_logger import MetricsLogger
from neuscale.training.optim import create_optimizer
from neuscale.training.outcome import BestSoFar, Outcome
from neuscale.training.param_groups import training_mode
from neuscale.training.profiling import StepProfiler
from neuscale.training.stopping import Deadline, Stopped, StopRequest
from neuscale.training.tracking.tracker import Tracker
from neuscale.training.training_state import loop_state, state_dict


class Trainer:
    """Trains the model of `config` on `data`. Nothing is written before `fit`."""

    def __init__(self, config: Config, data: Dataset, accelerator: Accelerator, progress: Progress) -> None:
        self.config, self.data, self.accelerator, self.progress = config, data, accelerator, progress
        self.rank = Rank.current()
        train, device = config.train, accelerator.device
        self._deadline = Deadline(config.run.time_limit)

        self.ops = choose_ops(config.model, device)
        self.choice = choose_loader(config.data, data, device)
        check_augment(config.augment, self.choice)
        self.loader = create_loader(self.choice, config.data, data, "train", device, self.rank)
        self.val_loader = create_loader(self.choice, config.data, data, "val", device, self.rank)
        self.steps_per_epoch = steps_per_epoch(len(self.loader), train.global_batch_size)
        self.total_steps = self.steps_of(config)
        self.span = Span(0, self.total_steps)

        built = build_model(config, self.loader.size, data.meta, device, self.ops, progress)
        self.raw_model, self._frozen = built.module, built.frozen
        optimizer = create_optimizer(config.optim, self.raw_model)
        self.model, self.optimizer = accelerator.prepare(self.raw_model, optimizer)
        self.ema = WeightAverage(self.raw_model, train.ema_decay) if train.ema_decay else None
        self._labels = evaluated_labels(data.meta, device)
        self.loss = TrainingLoss(train, data.class_counts("train"), len(self.loader), device, self._labels)
        self.drop_path = DropPathDraws(self.raw_model, config.run.seed, device)
        self._clipped = list(self.model.parameters())  # listing them takes as long as clipping them
        # Without a loss scale Accelerate's wrapper only costs time: it searches for a package at each step.
        self.inner_optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        self._stepped = self.optimizer if accelerator.scaler is not None else self.inner_optimizer
        self.accumulation = Accumulation(train, self.rank, self.model, self._stepped, device, progress)
        check_statistics(self.raw_model, train.global_batch_size // self.rank.world_size, self.accumulation)
        peak = peak_tflops(device, resolve_precision(train.precision, device.type))
        self.metrics = MetricsLogger(accelerator, train.global_batch_size, built.flops, peak)
        self.step = 0  # steps done, over all resumes
        self.own_metrics = own = OwnMetrics.of(config.eval, data.meta)
        self.best = BestSoFar(config.eval, train.patience, data.meta.label_sets is not None, own.falling)
        self.last: AnyEvaluation | None = None
        self.evaluation_due = False  # at the step where this process starts: a stop interrupted it
        self.stopped_by: str | None = None
        self.first = (0, 0.0)  # step and training seconds at which this process starts
        self.saved_step = -1
        self._saver = BackgroundSaver()

    def fit(self, checkpoints: CheckpointFolder, tracker: Tracker) -> Outcome:
        """Train until the last step, early stopping or a request to stop, and save."""
        self._checkpoints, self._tracker = checkpoints, tracker
        training_mode(self.model, self._frozen)
        folder, device = checkpoints.folder.parent / "profile", self.accelerator.device
        profiled = self.config.train.profile and self.accelerator.is_main_process
        images = (self.total_steps - self.step) * self.config.train.global_batch_size
        self.metrics.timer.start(self.step)
        try:
            with (
                StopRequest(device, self._deadline) as stop,
                StepProfiler(folder, device, profiled, self.progress) as profiler,
            ):
                if self.evaluation_due:
                    if self.step == self.total_steps:
                        self._log_rest()
                    self._evaluate_epoch(stop)
                with self.progress.task("training", images, "img") as task:
                    while not self.should_stop() and self.stopped_by is None:
                        self.train_epoch(stop, profiler, task)
                if self.saved_step != self.step:
                    self.save()
                if self.best.exhausted and self.step < self.total_steps:
                    self._log_rest()
                self._saver.wait()
        finally:
            self._saver.close()
        self.accelerator.wait_for_everyone()
        return self.outcome()

    def train_epoch(self, stop: StopRequest, profiler: StepProfiler, task: Task) -> None:
        """Train for the rest of an epoch, or until a stop is agreed; then evaluate and save."""
        config, batch_size = self.config, self.config.train.global_batch_size
        epoch, first = divmod(self.step, self.steps_per_epoch)
        steps = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
        batches = self.loader.training(
            config.augment, config.run.seed, epoch, first, steps, batch_size, self.accumulation.steps
        )
        for step_batches in self.metrics.timer.timed(batches):
            if self.step == self.first[0]:
                self.accumulation.warm_up(partial(self.forward_backward, step_batches))
            if self.step == 0:
                self._tracker.images(step_batches[0].images, self.loader)
            self.train_step(step_batches)
            profiler.step()
            task.advance(batch_size)
            if self.step % config.train.log_every_steps == 0:
                self._log(task)
            every = config.checkpoint.every_steps
            if every and self.step % every == 0 and self.step % self.steps_per_epoch:
                self.save()
            if self.step < self.total_steps and stop.agreed(self.step, self._saver.seconds):
                self.stopped_by = stop.words
                break
        if self.step % self.steps_per_epoch == 0 or self.step == self.total_steps:
            if self.step == self.total_steps:
                self._log_rest()
            self._end_epoch(epoch, stop)

    def train_step(self, batches: list[Batch]) -> None:
        """Run one optimizer step on this rank's share of a global batch, given as micro-batches."""
        set_lr(self.optimizer, lr_at(self.config.optim, self.step, self.steps_per_epoch, self.span))
        sums = self.accumulation.run(lambda: self.forward_backward(batches))
        if self.config.optim.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self._clipped, self.config.optim.clip_grad_norm)
        self._stepped.step()
        self._stepped.zero_grad()
        if self.ema is not None:
            self.ema.update()
        self.metrics.add(self.step, sums)
        self.step += 1

    def forward_backward(self, batches: list[Batch], synchronise: bool = True) -> Tensor:
        """Accumulate the gradients of a step; return the `batch_sums` of its micro-batches, added up."""
        train, accelerator = self.config.train, self.accelerator
        # Dropout masks differ between steps and ranks, and are the same after a resume.
        seed = derived_seed(self.config.run.seed, self.step, f"dropout {self.rank.rank}")
        seed_generator(accelerator.device, seed)
        sums = torch.zeros(2, device=accelerator.device)
        pieces = self.accumulation.steps // len(batches)  # more than 1 once memory has run out
        micro_batches = [part for batch in batches for part in batch.split(pieces)]
        for i, batch in enumerate(micro_batches):
            self.drop_path.set(batch.epoch, batch.positions)
            # Gradients are all-reduced once per step, with the last micro-batch.
            last = synchronise and i == len(micro_batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                images = batch.images
                if train.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                logits: Tensor = self.model(images)
                loss = self.loss(logits, batch)
                accelerator.backward(loss / len(micro_batches))
            sums += self.loss.sums(logits, batch, loss)
        return sums

    def should_stop(self) -> bool:
        """True after the last step or once early stopping triggers."""
        return self.step >= self.total_steps or self.best.exhausted

    def steps_of(self, config: Config) -> int:
        """Number of steps of a training with `config` on this data."""
        steps = self.steps_per_epoch * config.train.epochs
        return steps if config.train.max_steps is None else min(steps, config.train.max_steps)

    def evaluate(self, stop: StopRequest | None = None) -> AnyEvaluation:
        """Evaluate the moving average of the weights if there is one, else the weights.

        Raises Stopped between two batches once all ranks have agreed to `stop`.
        """
        size, share = self.config.eval.batch_size, len(self.val_loader) // self.rank.world_size
        batches = self.val_loader.evaluation(size)
        try:
            with self.ema.swapped() if self.ema is not None else nullcontext():
                share_running_statistics(self.raw_model)
                return evaluate(
                    self.raw_model,
                    stop.watched(batches, share // size) if stop is not None else batches,
                    self._labels,
                    self.accelerator.device,
                    self.accelerator.autocast,
                    self.progress,
                    total=share,
                    metrics=self.own_metrics,
                )
        finally:
            training_mode(self.model, self._frozen)

    def save(self) -> None:
        """Save a checkpoint in the background. All ranks must call this."""
        self._check_finite()
        state, step, loop = state_dict(self), self.step, loop_state(self)
        self.saved_step = step
        if not self.accelerator.is_main_process:
            return

        def write(copy: dict[str, Any]) -> None:
            self._tracker.sync()
            epoch, (weights, average, training) = step // self.steps_per_epoch, copy.values()
            self._checkpoints.save(step, epoch, weights, training, {}, False, average, loop)

        self._saver.save(write, state)

    def outcome(self) -> Outcome:
        """Outcome of the training so far."""
        steps, seconds = self.step - self.first[0], self.metrics.timer.seconds - self.first[1]
        return Outcome(
            steps=self.step,
            epochs=self.step // self.steps_per_epoch,
            seconds=self.metrics.timer.seconds,
            images_per_second=steps * self.config.train.global_batch_size / seconds if seconds else 0.0,
            last=self.last,
            stopped_by=self.stopped_by,
            **self.best.named(),
        )

    def _log_rest(self) -> None:
        """Log the last point of the curves, for the steps since the last regular point."""
        if self.step % self.config.train.log_every_steps:
            self._log(None)

    def _log(self, task: Task | None) -> None:
        lr = lr_at(self.config.optim, self.step - 1, self.steps_per_epoch, self.span)
        steps = self.metrics.running.steps
        values = self.metrics.values(self.step, lr, self._check_finite, is_last=task is None)
        self._tracker.train(self.step, values, steps if task is None else None)
        if task is None:
            return
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        task.note(f"epoch {epoch} of {epochs}, loss {values['loss']:.3f}")

    def _check_finite(self) -> None:
        bad: Tensor = self.accelerator.gather(self.metrics.running.bad.reshape(1))
        is_main, spe = self.accelerator.is_main_process, self.steps_per_epoch
        check_finite(bad, self.config, self.loader, spe, self._checkpoints, write=is_main)

    def _end_epoch(self, epoch: int, stop: StopRequest) -> None:
        """Save, then evaluate if an evaluation is due: a stop during the evaluation loses nothing."""
        every, milestones = self.config.checkpoint.every_steps, self.config.checkpoint.milestones
        done = self.step >= self.total_steps
        self.evaluation_due = done or (epoch + 1) % self.config.eval.every_epochs == 0
        if self.evaluation_due or not every or self.step % every == 0 or epoch + 1 in milestones:
            self.save()
        if self.evaluation_due:
            self._evaluate_epoch(stop)

    def _evaluate_epoch(self, stop: StopRequest) -> None:
        """Evaluate after a saved step, and add the result to its checkpoint."""
        try:
            self.last = self.evaluate(stop)
        except Stopped:
            self.stopped_by = stop.words
            return
        self.evaluation_due = False
        is_best, step, metrics = self.best.update(self.last), self.step, self.last.scalars()
        self._tracker.evaluation(step, self.last)
        epoch, (name, value) = math.ceil(step / self.steps_per_epoch), self.last.headline
        self.progress.message(
            f"epoch {epoch}: {name} {value:.2%}, loss {self.last.loss:.3f} on {self.last.samples:,} images"
        )
        if self.best.exhausted and step < self.total_steps:
            self.progress.message(f"early stopping: {self.best.words}")
        if self.accelerator.is_main_process:
            loop = loop_state(self)

            def add(_: object) -> None:
                self._tracker.sync()
                self._checkpoints.add_evaluation(step, metrics, is_best, loop)

            self._saver.save(add, None)
