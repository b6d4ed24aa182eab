"""The training loop: `fit` → `train_epoch` → `train_step`.

Random choices follow from (seed, epoch, position) and the learning rate from the step, so a run
resumes from a checkpoint alone. The loader and the schedule are not passed through
`Accelerator.prepare`, which would skip or repeat data on resume and step the schedule once per
process.
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
from neuscale.evaluation.evaluate import Evaluation, evaluate, share_running_statistics
from neuscale.models.fused import choose_ops
from neuscale.models.weights import load_weights
from neuscale.progress import Progress, Task
from neuscale.training.accumulation import Accumulation
from neuscale.training.build import build_model
from neuscale.training.checkpoint import BackgroundSaver, Checkpoint, CheckpointFolder
from neuscale.training.determinism import seed_generator
from neuscale.training.drop_path import DropPathDraws
from neuscale.training.ema import WeightAverage
from neuscale.training.flops import peak_tflops
from neuscale.training.loss import batch_loss, batch_sums
from neuscale.training.lr_schedule import lr_at, set_lr
from neuscale.training.metrics_logger import MetricsLogger
from neuscale.training.nonfinite import check_finite
from neuscale.training.optim import create_optimizer
from neuscale.training.outcome import Outcome
from neuscale.training.param_groups import training_mode
from neuscale.training.profiling import StepProfiler
from neuscale.training.stopping import Deadline, StopRequest
from neuscale.training.tracking.tracker import Tracker


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
        self.total_steps = self.steps_per_epoch * train.epochs
        if train.max_steps is not None:
            self.total_steps = min(self.total_steps, train.max_steps)

        built = build_model(config, self.loader.size, data.meta, device, self.ops, progress)
        self.raw_model, self._frozen = built.module, built.frozen
        self.model, self.optimizer = accelerator.prepare(
            self.raw_model, create_optimizer(config.optim, self.raw_model)
        )
        self.ema = WeightAverage(self.raw_model, train.ema_decay) if train.ema_decay else None
        self.drop_path = DropPathDraws(self.raw_model, config.run.seed, len(self.loader), device)
        self._clipped = list(self.model.parameters())  # listing them takes as long as clipping them
        # Without a loss scale Accelerate's wrapper only costs time: it searches for a package at each step.
        scaled, wrapper = accelerator.scaler is not None, self.optimizer
        self._stepped = wrapper if scaled else getattr(wrapper, "optimizer", wrapper)
        self.accumulation = Accumulation(train, self.rank, self.model, self._stepped, device, progress)
        peak = peak_tflops(device, resolve_precision(train.precision, device.type))
        self.metrics = MetricsLogger(accelerator, train.global_batch_size, built.flops, peak)
        self.step = 0  # steps done, over all resumes
        self.best_top1, self.evals_since_best = -1.0, 0
        self.last: Evaluation | None = None
        self.stopped_by: str | None = None
        self._first = (0, 0.0)  # step and training seconds at which this process starts
        self._saved_step = -1
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
                with self.progress.task("training", images, "img") as task:
                    while not self.should_stop() and self.stopped_by is None:
                        self.train_epoch(stop, profiler, task)
                if self._saved_step != self.step:
                    self.save({}, is_best=False)
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
            if self.step == self._first[0]:
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
                self.save({}, is_best=False)
            if self.step < self.total_steps and stop.agreed(self.step, self._saver.seconds):
                self.stopped_by = stop.signal or "a signal to another process"
                break
        if self.step % self.steps_per_epoch == 0 or self.step == self.total_steps:
            self._end_epoch(epoch)

    def train_step(self, batches: list[Batch]) -> None:
        """One optimizer step on this process's part of a global batch, given as micro-batches."""
        set_lr(self.optimizer, lr_at(self.config.optim, self.step, self.steps_per_epoch, self.total_steps))
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
        # Dropout masks differ between steps and processes, and are the same after a resume.
        seed = derived_seed(self.config.run.seed, self.step, f"dropout {self.rank.rank}")
        seed_generator(accelerator.device, seed)
        sums = torch.zeros(2, device=accelerator.device)
        pieces = self.accumulation.steps // len(batches)  # more than 1 once memory has run out
        micro_batches = [part for batch in batches for part in batch.split(pieces)]
        for i, batch in enumerate(micro_batches):
            self.drop_path.set(batch.epoch, batch.positions)
            # Gradients are reduced over the processes once a step, with the last micro-batch.
            last = synchronise and i == len(micro_batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                images = batch.images
                if train.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                logits: Tensor = self.model(images)
                loss = batch_loss(logits.float(), batch, train.label_smoothing)
                accelerator.backward(loss / len(micro_batches))
            sums += batch_sums(logits, batch.labels, loss)
        return sums

    def should_stop(self) -> bool:
        """True after the last step or once early stopping triggers."""
        patience = self.config.train.patience
        return self.step >= self.total_steps or (patience is not None and self.evals_since_best >= patience)

    def evaluate(self) -> Evaluation:
        """Evaluate the moving average of the weights if there is one, else the weights."""
        with self.ema.swapped() if self.ema is not None else nullcontext():
            share_running_statistics(self.raw_model)
            result = evaluate(
                self.raw_model,
                self.val_loader.evaluation(self.config.eval.batch_size),
                self.data.meta.num_classes,
                self.accelerator.device,
                self.accelerator.autocast,
                self.progress,
                total=len(self.val_loader) // self.rank.world_size,
            )
        training_mode(self.model, self._frozen)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint holds besides the step. All processes call this."""
        scaler = self.accelerator.scaler
        return {
            "weights": self.raw_model.state_dict(),
            "average": self.ema.average if self.ema is not None else None,
            "training": {
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                **self.metrics.state_dict(),
                "best_top1": self.best_top1,
                "stale": self.evals_since_best,
                "parts": self.accumulation.steps,
                "average_updates": self.ema.updates if self.ema is not None else 0,
            },
        }

    def load_state_dict(self, state: dict[str, Any], step: int, source: str) -> None:
        """Resume after `step`, from the `state_dict` saved there; `source` names it in errors."""
        training = state["training"]
        load_weights(self.raw_model, state["weights"], source)
        self.optimizer.load_state_dict(training["optimizer"])
        if self.ema is not None:
            # None where train.ema_decay was added on resume: the average starts at the weights.
            average = state["average"] if state["average"] is not None else self.raw_model.state_dict()
            self.ema.load(average, training["average_updates"])
        if self.accelerator.scaler is not None and training["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        self.metrics.load_state_dict(training, step % self.config.train.log_every_steps)
        self.step, self.best_top1, self.evals_since_best = step, training["best_top1"], training["stale"]
        if self.config.train.micro_batch == "auto":
            images = self.config.train.global_batch_size // self.rank.world_size
            self.accumulation.steps = training["parts"] if images % training["parts"] == 0 else 1
        self._first = (step, self.metrics.timer.seconds)
        self._saved_step = step

    def load(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint of this run."""
        self.load_state_dict(checkpoint.state_dict(), checkpoint.step, str(checkpoint.path))

    def save(self, metrics: dict[str, float], is_best: bool) -> None:
        """Save a checkpoint in the background. All processes call this."""
        self._check_finite()
        state, step = self.state_dict(), self.step
        self._saved_step = step
        if not self.accelerator.is_main_process:
            return

        def write(copy: dict[str, Any]) -> None:
            self._tracker.sync()
            epoch, (weights, average, training) = step // self.steps_per_epoch, copy.values()
            self._checkpoints.save(step, epoch, weights, training, metrics, is_best, average)

        self._saver.save(write, state)

    def outcome(self) -> Outcome:
        """The progress of training so far."""
        steps, seconds = self.step - self._first[0], self.metrics.timer.seconds - self._first[1]
        return Outcome(
            steps=self.step,
            epochs=self.step // self.steps_per_epoch,
            seconds=self.metrics.timer.seconds,
            images_per_second=steps * self.config.train.global_batch_size / seconds if seconds else 0.0,
            last=self.last,
            best_top1=self.best_top1,
            stopped_by=self.stopped_by,
        )

    def _log(self, task: Task) -> None:
        lr = lr_at(self.config.optim, self.step - 1, self.steps_per_epoch, self.total_steps)
        values = self.metrics.values(self.step, lr, self._check_finite)
        self._tracker.train(self.step, values)
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        epoch = (self.step - 1) // self.steps_per_epoch + 1
        task.note(f"epoch {epoch} of {epochs}, loss {values['loss']:.3f}")

    def _check_finite(self) -> None:
        bad: Tensor = self.accelerator.gather(self.metrics.running.bad.reshape(1))
        is_main, count = self.accelerator.is_main_process, len(self.loader)
        check_finite(bad, self.config, count, self.steps_per_epoch, self._checkpoints, write=is_main)

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate when an evaluation is due, and save."""
        done = self.step >= self.total_steps
        due = done or (epoch + 1) % self.config.eval.every_epochs == 0
        metrics: dict[str, float] = {}
        is_best = False
        if due:
            self._check_finite()
            self.last = self.evaluate()
            metrics = self.last.scalars()
            is_best = self.last.top1 > self.best_top1
            self.best_top1 = max(self.best_top1, self.last.top1)
            self.evals_since_best = 0 if is_best else self.evals_since_best + 1
            self._tracker.evaluation(self.step, self.last)
            self.progress.message(
                f"epoch {epoch + 1}: top-1 {self.last.top1:.2%}, loss {self.last.loss:.3f}"
                f" on {self.last.samples:,} images"
            )
            if not done and self.should_stop():
                evals = self.evals_since_best
                self.progress.message(f"early stopping: top-1 has not improved for {evals} evaluations")
        every = self.config.checkpoint.every_steps
        if due or not every or self.step % every == 0 or (epoch + 1) in self.config.checkpoint.milestones:
            self.save(metrics, is_best)
