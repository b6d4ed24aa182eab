"""One optimizer step: forward and backward of each micro-batch, then the update."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from neuscale.config import Config
from neuscale.data.loader import Batch
from neuscale.data.order import micro_batches
from neuscale.data.randomness import derived_seed
from neuscale.errors import UserError
from neuscale.progress import Progress
from neuscale.training.device import seed_generator, share_of
from neuscale.training.drop_path import DropPathDraws
from neuscale.training.ema import WeightAverage
from neuscale.training.meters import batch_sums
from neuscale.training.micro_batch import smaller, split


class OptimizerStep:
    """Computes gradients of a process's share of a global batch and updates the model.

    `parts`: micro-batches per share, more of them once memory has run out.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        drop_path: DropPathDraws,
        average: WeightAverage | None,
        accelerator: Accelerator,
        progress: Progress,
        parts: int,
    ) -> None:
        self.config, self.model = config, model
        # Without a loss scale Accelerate's optimizer only adds time:
        # it looks for a package on disk at each step.
        scaled = accelerator.scaler is not None
        self.optimizer = optimizer if scaled else getattr(optimizer, "optimizer", optimizer)
        self.drop_path, self.average = drop_path, average
        self.accelerator, self.progress = accelerator, progress
        self.parts = parts
        self._share = share_of(accelerator)
        self._parameters = list(model.parameters())  # finding them takes as long as clipping them

    def __call__(self, step: int, epoch: int, step_of_epoch: int, batches: list[Batch]) -> Tensor:
        """Trains on a step's micro-batches; returns their `batch_sums` together."""
        while True:
            try:
                sums = self._gradients(step, epoch, step_of_epoch, batches)
                break
            except torch.OutOfMemoryError as error:
                self._halve(error)
        if self.config.optim.clip_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self._parameters, self.config.optim.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return sums

    def settle(self, epoch: int, step_of_epoch: int, batches: list[Batch]) -> None:
        """Has DDP order its buckets of gradients, before training, as it does after its first backward pass.

        A sum over three or more processes depends on where in a bucket it stands; the first step after
        a resume would be added up in another order than in a run that was never stopped.
        """
        if self._share.processes < 3:
            return
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self._gradients(0, epoch, step_of_epoch, batches)
        self.optimizer.zero_grad()
        for buffer, before in buffers:  # running statistics have seen these images
            buffer.copy_(before)

    def fit_memory(self, epoch: int, step_of_epoch: int, batches: list[Batch]) -> None:
        """Finds, before training, micro-batches that fit into memory on every process."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        while True:
            fits = True
            try:
                self._gradients(0, epoch, step_of_epoch, batches, synchronise=False)
            except torch.OutOfMemoryError as error:
                fits, reason = False, error
            self.optimizer.zero_grad()
            if dist.is_initialized():
                everywhere = torch.tensor([float(fits)], device=self.accelerator.device)
                dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
                if fits and not everywhere.item():
                    fits, reason = False, torch.OutOfMemoryError("another process ran out of memory")
            if fits:
                break
            self._halve(reason, agreed=True)
        for buffer, before in buffers:  # running statistics have seen these images
            buffer.copy_(before)

    def _gradients(
        self, step: int, epoch: int, step_of_epoch: int, batches: list[Batch], synchronise: bool = True
    ) -> Tensor:
        config, accelerator, share = self.config, self.accelerator, self._share
        # Dropout: another mask for each step and process, the same after a resume.
        seed_generator(accelerator.device, derived_seed(config.run.seed, step, f"dropout {share.rank}"))
        positions = micro_batches(
            step_of_epoch, config.train.global_batch_size, share.rank, share.processes, self.parts
        )
        sums = torch.zeros(2, device=accelerator.device)
        for i, batch in enumerate(split(batches, self.parts)):
            self.drop_path.set(epoch, positions[i])
            # Gradients travel between processes once a step.
            last = synchronise and i == self.parts - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                images = batch.images
                if config.train.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                logits: Tensor = self.model(images)
                loss = batch_loss(logits.float(), batch, config.train.label_smoothing)
                accelerator.backward(loss / self.parts)
            sums += batch_sums(logits, batch.labels, loss)
        return sums

    def _halve(self, error: BaseException, agreed: bool = False) -> None:
        """Smaller micro-batches from here on. Raises UserError where that cannot be."""
        train, share = self.config.train, self._share
        images = train.global_batch_size // share.processes
        parts = smaller(images, self.parts)
        size = images // self.parts
        if parts is None or train.micro_batch != "auto" or (share.processes > 1 and not agreed):
            # Processes that wait for this one's gradients cannot begin the step again.
            raise UserError(
                f"memory ran out with {size} images in a micro-batch.",
                f"Take fewer: train.micro_batch={images // parts}."
                if parts is not None
                else "Use a smaller model, model.gradient_checkpointing=true or train.precision=bf16.",
            ) from error
        self.parts = parts
        self.optimizer.zero_grad()
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        self.progress.warning(
            f"memory ran out with {size} images in a micro-batch: going on with {images // parts},"
            f" the global batch stays {train.global_batch_size}"
        )


def batch_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of float logits [B, classes]; of mixed images, by their shares of both labels."""
    if batch.shares is None or batch.partner_labels is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    own, other = (
        F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        for labels in (batch.labels, batch.partner_labels)
    )
    return (batch.shares * own + (1 - batch.shares) * other).mean()
