"""The training loop.

Randomness comes from (seed, epoch, step), the learning rate from the step, so that a run
that goes on from a checkpoint needs nothing but the checkpoint. The loader and the
schedule are ours and are not passed through `Accelerator.prepare`, which would skip or
repeat data on resume and step the schedule once per process.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from neuscale.config import Config
from neuscale.data.choose import check_augment, choose_loader, create_loader
from neuscale.data.loader import Batch
from neuscale.data.order import check_shares, micro_batches, steps_per_epoch
from neuscale.data.prepared import Dataset
from neuscale.data.randomness import derived_seed
from neuscale.errors import UserError
from neuscale.evaluation.evaluate import Evaluation, evaluate
from neuscale.models.fused import choose_ops, fuse
from neuscale.models.registry import create_model
from neuscale.models.weights import load_starting_weights, load_weights
from neuscale.progress import Progress, Task
from neuscale.training.checkpoint import Checkpoint, CheckpointFolder
from neuscale.training.device import share_of
from neuscale.training.drop_path import DropPathDraws
from neuscale.training.optim import create_optimizer, lr_at, set_lr
from neuscale.training.stop import StopRequest
from neuscale.training.tracking import Tracker
from neuscale.training.window import Window


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    `seconds`: of training, over all resumes, without evaluations; `images_per_second`: since
    the last resume; `stopped_by`: the signal that asked for a stop, where it is not finished.
    """

    steps: int
    epochs: int
    seconds: float
    images_per_second: float
    last: Evaluation | None
    best_top1: float
    stopped_by: str | None


class Trainer:
    """Trains `config`'s model on `data`; nothing is written before `fit`."""

    def __init__(self, config: Config, data: Dataset, accelerator: Accelerator, progress: Progress) -> None:
        self.config, self.data, self.accelerator, self.progress = config, data, accelerator, progress
        device, share = accelerator.device, share_of(accelerator)
        train = config.train
        check_shares(train.global_batch_size, share.processes, train.accumulation_steps)
        self.ops = choose_ops(config.model.ops, device)
        self.choice = choose_loader(config.data, data, device)
        check_augment(config.augment, self.choice)
        self.loader = create_loader(self.choice, config.data, data, "train", device, share)
        self.val_loader = create_loader(self.choice, config.data, data, "val", device, share)
        self.steps_per_epoch = steps_per_epoch(len(self.loader), train.global_batch_size)
        self.total_steps = self.steps_per_epoch * train.epochs
        if train.max_steps is not None:
            self.total_steps = min(self.total_steps, train.max_steps)

        meta = data.meta
        model = create_model(config.model, self.loader.size, meta.channels, meta.num_classes, config.run.seed)
        if config.model.weights is not None:
            progress.message(load_starting_weights(model, config.model))
        if self.ops.kind == "fused":
            fuse(model, device)
        self.raw_model = model.to(device)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.model, self.optimizer = accelerator.prepare(model, create_optimizer(config.optim, model))

        self.drop_path = DropPathDraws(model, config.run.seed, len(self.loader), device)
        self.window = Window(device)
        self.step = 0
        self.best_top1 = -1.0
        self.last: Evaluation | None = None
        self.train_seconds = 0.0  # without evaluations, over all resumes
        self.stopped_by: str | None = None
        self._start = self._clock = (0, 0.0)  # step and train_seconds: of this process, of the last point
        self._saved_step = -1

    def load(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of this run."""
        state = checkpoint.training_state()
        load_weights(self.raw_model, checkpoint.weights(), str(checkpoint.path))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:  # the sums are those of all processes; one carries them on
            self.window.sums.copy_(state["window"])
        self.step, self.best_top1 = checkpoint.step, state["best_top1"]
        self.train_seconds = state["train_seconds"]
        self._start = self._clock = (self.step, self.train_seconds)
        self._saved_step = self.step

    def fit(self, checkpoints: CheckpointFolder, tracker: Tracker) -> Outcome:
        """Trains to the end, or until a signal asks for a stop; saves either way."""
        self._checkpoints = checkpoints
        self.model.train()
        batch_size = self.config.train.global_batch_size
        with StopRequest(self.accelerator.device) as stop:
            with self.progress.task("training", (self.total_steps - self.step) * batch_size, "img") as task:
                while self.step < self.total_steps and self.stopped_by is None:
                    self._epoch(tracker, stop, task)
            if self._saved_step != self.step:
                self._save({}, is_best=False)
        return self.outcome()

    def outcome(self) -> Outcome:
        """How far training has come."""
        done, seconds = self.step - self._start[0], self.train_seconds - self._start[1]
        return Outcome(
            steps=self.step,
            epochs=self.step // self.steps_per_epoch,
            seconds=self.train_seconds,
            images_per_second=done * self.config.train.global_batch_size / seconds if seconds else 0.0,
            last=self.last,
            best_top1=self.best_top1,
            stopped_by=self.stopped_by,
        )

    def _epoch(self, tracker: Tracker, stop: StopRequest, task: Task) -> None:
        """The rest of an epoch, or as much of it as there is before a stop."""
        config, batch_size = self.config, self.config.train.global_batch_size
        epoch, first = divmod(self.step, self.steps_per_epoch)
        steps = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
        batches = self.loader.training(
            config.augment, config.run.seed, epoch, first, steps, batch_size, config.train.accumulation_steps
        )
        for step_batches in self._timed(batches):
            if self.step == 0:
                tracker.images(step_batches[0].images, self.loader)
            self._optimize(step_batches)
            self.step += 1
            task.advance(batch_size)
            if self.step % config.train.log_every_steps == 0:
                self._log(tracker, task)
            every = config.checkpoint.every_steps
            if every and self.step % every == 0 and self.step % self.steps_per_epoch:
                self._save({}, is_best=False)
            if self.step < self.total_steps and stop.agreed(self.step):
                self.stopped_by = stop.signal or "a signal to another process"
                break
        if self.step % self.steps_per_epoch == 0 or self.step == self.total_steps:
            self._end_epoch(tracker, epoch)

    def _timed(self, batches: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """The batches, counting the time between asking for one and asking for the next as training."""
        began = time.perf_counter()
        for step_batches in batches:
            yield step_batches
            now = time.perf_counter()
            self.train_seconds += now - began
            began = now

    def _optimize(self, batches: list[Batch]) -> None:
        """One optimizer step."""
        config, accelerator = self.config, self.accelerator
        set_lr(self.optimizer, self._lr(self.step))
        # Dropout: another mask for each step and process, the same after a resume.
        torch.manual_seed(derived_seed(config.run.seed, self.step, f"dropout {accelerator.process_index}"))
        epoch, step = divmod(self.step, self.steps_per_epoch)
        share = share_of(accelerator)
        parts = micro_batches(step, config.train.global_batch_size, share.rank, share.processes, len(batches))
        for i, (batch, positions) in enumerate(zip(batches, parts, strict=True)):
            last = i == len(batches) - 1
            self.drop_path.set(epoch, positions)
            # Gradients travel between processes once a step.
            with nullcontext() if last else accelerator.no_sync(self.model):
                logits: Tensor = self.model(batch.images)
                loss = batch_loss(logits.float(), batch, config.train.label_smoothing)
                accelerator.backward(loss / len(batches))
            self.window.add(logits, batch.labels, loss)
        if config.optim.clip_grad_norm is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), config.optim.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _lr(self, step: int) -> float:
        return lr_at(self.config.optim, step, self.steps_per_epoch, self.total_steps)

    def _log(self, tracker: Tracker, task: Task) -> None:
        batch_size = self.config.train.global_batch_size
        sums: Tensor = self.accelerator.reduce(self.window.sums.clone(), "sum")
        loss, accuracy = (sums / (self.config.train.log_every_steps * batch_size)).tolist()
        self.window.clear()
        lr = self._lr(self.step - 1)
        # The clock stands at the beginning of this step.
        steps, seconds = self.step - 1 - self._clock[0], self.train_seconds - self._clock[1]
        self._clock = (self.step - 1, self.train_seconds)
        if not math.isfinite(loss):
            raise UserError(
                f"the training loss is {loss} at step {self.step}.",
                f"Lower optim.lr (now {self.config.optim.lr:g}), or set optim.clip_grad_norm"
                " or train.precision=fp32.",
            )
        rate = steps * batch_size / seconds if seconds else 0.0
        tracker.train(self.step, loss=loss, accuracy=accuracy, lr=lr, images_per_second=rate)
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        task.note(f"epoch {(self.step - 1) // self.steps_per_epoch + 1} of {epochs}, loss {loss:.3f}")

    def _end_epoch(self, tracker: Tracker, epoch: int) -> None:
        """Evaluates where it is due, and saves."""
        done = self.step >= self.total_steps
        due = done or (epoch + 1) % self.config.eval.every_epochs == 0
        metrics: dict[str, float] = {}
        is_best = False
        if due:
            self.last = self._evaluate()
            metrics = self.last.scalars()
            is_best = self.last.top1 > self.best_top1
            self.best_top1 = max(self.best_top1, self.last.top1)
            tracker.evaluation(self.step, self.last)
            self.progress.message(
                f"epoch {epoch + 1}: top-1 {self.last.top1:.2%}, loss {self.last.loss:.3f}"
                f" on {self.last.samples:,} images"
            )
        if due or not self.config.checkpoint.every_steps:
            self._save(metrics, is_best)

    def _evaluate(self) -> Evaluation:
        return evaluate(
            self.raw_model,
            self.val_loader.evaluation(self.config.eval.batch_size),
            self.data.meta.num_classes,
            self.accelerator.device,
            self.accelerator.autocast,
            self.progress,
            total=len(self.val_loader) // self.accelerator.num_processes,
        )

    def _save(self, metrics: dict[str, float], is_best: bool) -> None:
        window = self.accelerator.reduce(self.window.sums.clone(), "sum")
        self._saved_step = self.step
        if self.accelerator.is_main_process:
            training: dict[str, Any] = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.accelerator.scaler.state_dict()
                if self.accelerator.scaler is not None
                else None,
                "window": window.cpu(),
                "best_top1": self.best_top1,
                "train_seconds": self.train_seconds,
            }
            epoch = self.step // self.steps_per_epoch
            self._checkpoints.save(self.step, epoch, self.raw_model.state_dict(), training, metrics, is_best)
        self.accelerator.wait_for_everyone()


def batch_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of float logits [B, classes]; of mixed images, by their shares of both labels."""
    if batch.shares is None or batch.partner_labels is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    own, other = (
        F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        for labels in (batch.labels, batch.partner_labels)
    )
    return (batch.shares * own + (1 - batch.shares) * other).mean()
