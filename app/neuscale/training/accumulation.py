"""Gradient accumulation: the number of micro-batches that a rank's share of a global batch is split into.

With `train.micro_batch=auto` a pass that runs out of memory is repeated with smaller micro-batches; the
global batch, and with it the training, stays the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neuscale.config.schema import TrainConfig
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError, UserError
from neuscale.progress import Progress


def accumulation_steps(micro_batch: str, global_batch_size: int, world_size: int) -> int:
    """Number of micro-batches per rank for `train.micro_batch`: "auto", or a number of images.

    Raises UsageError for anything else, and for a number that does not divide the rank's images.
    """
    images = global_batch_size // world_size
    if micro_batch == "auto":
        return 1
    if not micro_batch.isascii() or not micro_batch.isdigit() or int(micro_batch) == 0:
        raise UsageError(f"train.micro_batch={micro_batch}: expected auto or a whole number of at least 1.")
    size = min(int(micro_batch), images)
    if images % size:
        near = max(n for n in range(1, size) if images % n == 0)
        raise UsageError(
            f"train.micro_batch={micro_batch} does not divide a process's {images} images of a step.",
            f"The nearest below that does: train.micro_batch={near}.",
        )
    return images // size


def next_accumulation_steps(images: int, steps: int) -> int | None:
    """The next larger multiple of `steps` that divides `images`; None if a micro-batch is one image."""
    size = images // steps
    for divisor in range(2, size + 1):
        if size % divisor == 0:
            return steps * divisor
    return None


def check_statistics(model: nn.Module, images: int, accumulation: "Accumulation") -> None:
    """Raise UsageError if a BatchNorm would compute statistics of a single image.

    `images`: images per rank and step, which `accumulation` divides.
    """
    if images // accumulation.steps > 1:
        return
    for name, module in model.named_modules():
        is_trained = all(parameter.requires_grad for parameter in module.parameters())
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and is_trained:
            raise UsageError(
                f"the model has BatchNorm ({name}), which needs several images in a part of a batch, and a"
                " part has one.",
                "Raise train.global_batch_size or train.micro_batch, or use fewer processes.",
            )


class Accumulation:
    """The number of micro-batches (`steps`) per rank, increased when memory runs out."""

    def __init__(
        self,
        train: TrainConfig,
        rank: Rank,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.steps = accumulation_steps(train.micro_batch, train.global_batch_size, rank.world_size)
        self._images = train.global_batch_size // rank.world_size
        self._train, self._world_size = train, rank.world_size
        self._model, self._optimizer, self._device, self._progress = model, optimizer, device, progress

    def run(self, forward_backward: Callable[[], Tensor]) -> Tensor:
        """Call `forward_backward`; repeat it with smaller micro-batches while it runs out of memory.

        Raises UserError if they cannot be made smaller, and with several ranks: the pass cannot be repeated,
        because the other ranks already wait for this rank's gradients.
        """
        while True:
            try:
                return forward_backward()
            except torch.OutOfMemoryError as error:
                self._increase(error, allowed=self._world_size == 1)

    def warm_up(self, forward_backward: Callable[[bool], Tensor]) -> None:
        """Run throw-away passes before a process's first step; they change nothing but `steps`.

        On a GPU they find micro-batches that fit into the memory of every rank. With three or more
        ranks, one pass makes DDP rebuild its buckets: the last bit of a sum depends on its position in
        a bucket, so the first step after a resume would differ from that of an uninterrupted run.
        `forward_backward` takes a bool: True if the ranks exchange gradients.
        """
        if self._device.type == "cuda":
            self.fit_memory(forward_backward)
        if self._world_size >= 3:
            with self._discarded():
                forward_backward(True)

    def fit_memory(self, forward_backward: Callable[[bool], Tensor]) -> None:
        """Increase `steps` until a pass fits into the memory of every rank."""
        with self._discarded():
            while (error := self._out_of_memory(forward_backward)) is not None:
                self._increase(error, allowed=True)

    def _out_of_memory(self, forward_backward: Callable[[bool], Tensor]) -> torch.OutOfMemoryError | None:
        """Run a pass; return the out-of-memory error of any rank, None if it fits everywhere."""
        found: torch.OutOfMemoryError | None = None
        try:
            forward_backward(False)
        except torch.OutOfMemoryError as error:
            found = error
        self._optimizer.zero_grad()
        if dist.is_initialized():
            fits = torch.tensor([float(found is None)], device=self._device)
            dist.all_reduce(fits, op=dist.ReduceOp.MIN)
            if not fits.item():
                found = found or torch.OutOfMemoryError("another process ran out of memory")
        return found

    def _increase(self, error: torch.OutOfMemoryError, allowed: bool) -> None:
        train, size = self._train, self._images // self.steps
        steps = next_accumulation_steps(self._images, self.steps)
        if steps is None or train.micro_batch != "auto" or not allowed:
            raise UserError(
                f"memory ran out with {size} images in a micro-batch.",
                f"Take fewer: train.micro_batch={self._images // steps}."
                if steps is not None
                else "Use a smaller model, model.gradient_checkpointing=true or train.precision=bf16.",
            ) from error
        self.steps = steps
        self._optimizer.zero_grad()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._progress.warning(
            f"memory ran out with {size} images in a micro-batch: continuing with {self._images // steps};"
            f" the global batch stays {train.global_batch_size}"
        )

    @contextmanager
    def _discarded(self) -> Iterator[None]:
        """Context that undoes changes to gradients and buffers (running statistics)."""
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        yield
        self._optimizer.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)
