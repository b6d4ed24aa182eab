"""What Lightning iterates over: our loaders, which know where an epoch stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer

from neuscale.config import Config
from neuscale.data.loader import Batch, Loader
from neuscale.data.order import evaluation_batches, micro_batches, steps_per_epoch
from neuscale.errors import UsageError


@dataclass
class TrainingBatch:
    """A micro-batch: part `part` of step `step` of `epoch`, at `positions` of the epoch's order."""

    content: Batch
    epoch: int
    step: int
    part: int
    positions: slice


@dataclass
class ValidationBatch:
    """`counted`: whether the images belong to this process's share; see ValidationBatches."""

    content: Batch
    counted: bool


class TrainingBatches:
    """This process's micro-batches of the Trainer's present epoch, from where the epoch stands.

    Lightning asks for an iterator before its counters are in place; they are read with the first batch.
    """

    def __init__(self, loader: Loader, config: Config, fingerprint: str, trainer: Trainer) -> None:
        self._loader, self._config, self._trainer = loader, config, trainer
        self._parts = trainer.accumulate_grad_batches
        self._identity = {
            "run.seed": config.run.seed,
            "train.global_batch_size": config.train.global_batch_size,
            "data fingerprint": fingerprint,
        }

    def __len__(self) -> int:
        return steps_per_epoch(len(self._loader), self._config.train.global_batch_size) * self._parts

    def __iter__(self) -> Iterator[TrainingBatch]:
        config, parts, share = self._config, self._parts, self._loader.share
        size = config.train.global_batch_size
        epoch = self._trainer.current_epoch
        first, begun = divmod(self._trainer.fit_loop.epoch_loop.batch_progress.current.ready, parts)
        steps = len(self) // parts
        batches = self._loader.training(config.augment, config.run.seed, epoch, first, steps, size, parts)
        for step, step_batches in enumerate(batches, first):
            positions = micro_batches(step, size, share.rank, share.processes, parts)
            for part in range(begun if step == first else 0, parts):
                yield TrainingBatch(step_batches[part], epoch, step, part, positions[part])

    def state_dict(self) -> dict[str, Any]:
        """What the order of the images depends on; where the epoch stands, the Trainer itself saves."""
        return dict(self._identity)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UsageError where a run would go on with another order of images."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise UsageError(
                    f"{name} cannot change in a run that has begun (it was {state.get(name)}, now {value}).",
                    "Leave it as it was, or start anew, without ckpt_path.",
                )


class ValidationBatches:
    """This process's share of a split: over all processes every image is counted once.

    DistributedDataParallel may exchange buffers in each forward pass, so all processes have equally many
    batches: one with fewer is given an image of `whole`, a loader of the whole split, that is not counted.
    """

    def __init__(self, loader: Loader, whole: Loader, batch_size: int) -> None:
        self._loader, self._whole, self._batch_size = loader, whole, batch_size

    def __len__(self) -> int:
        count, processes = len(self._loader), self._loader.share.processes
        return max(
            len(evaluation_batches(count, self._batch_size, rank, processes)) for rank in range(processes)
        )

    def __iter__(self) -> Iterator[ValidationBatch]:
        own = 0
        for batch in self._loader.evaluation(self._batch_size):
            own += 1
            yield ValidationBatch(batch, counted=True)
        if own < len(self):
            yield ValidationBatch(next(self._whole.evaluation(1)), counted=False)
