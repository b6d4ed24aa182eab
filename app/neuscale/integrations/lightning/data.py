"""The data of a recipe for Lightning's Trainer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer

from neuscale.config import Config
from neuscale.data.loaders.choose import check_augment, choose_loader, create_loader
from neuscale.data.loaders.loader import Batch, Loader
from neuscale.data.open import open_data
from neuscale.data.sampling import check_shares, evaluation_batches, steps_per_epoch
from neuscale.distributed.rank import Rank
from neuscale.errors import UsageError
from neuscale.integrations.lightning.recipe import Recipe, check_trainer, recipe_config
from neuscale.progress import Silent


@dataclass
class ValidationBatch:
    """A batch; `counted`: False for one that only pads a rank's number of batches (see ValidationBatches)."""

    content: Batch
    counted: bool


class TrainingBatches:
    """This rank's micro-batches of the Trainer's current epoch, from the step that it has reached.

    Lightning creates the iterator before it restores its counters, so they are read with the first batch.
    """

    def __init__(
        self, loader: Loader, config: Config, fingerprint: str, trainer: Trainer, older: str | None = None
    ) -> None:
        self._loader, self._config, self._trainer = loader, config, trainer
        self._parts = trainer.accumulate_grad_batches
        self._older = {"data fingerprint": older}  # as in checkpoints of earlier versions
        self._identity = {
            "run.seed": config.run.seed,
            "train.global_batch_size": config.train.global_batch_size,
            "data fingerprint": fingerprint,
        }

    def __len__(self) -> int:
        return steps_per_epoch(len(self._loader), self._config.train.global_batch_size) * self._parts

    def __iter__(self) -> Iterator[Batch]:
        config, parts = self._config, self._parts
        size, epoch = config.train.global_batch_size, self._trainer.current_epoch
        first, done = divmod(self._trainer.fit_loop.epoch_loop.batch_progress.current.ready, parts)
        steps = len(self) // parts
        batches = self._loader.training(config.augment, config.run.seed, epoch, first, steps, size, parts)
        for step_batches in batches:
            yield from step_batches[done:]
            done = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that determines the order of images; the Trainer saves the position itself."""
        return dict(self._identity)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise UsageError if the order of images would change on resume."""
        for name, value in self._identity.items():
            if state.get(name) not in (value, self._older.get(name, value)):
                raise UsageError(
                    f"{name} cannot change in a run that has started"
                    f" (it was {state.get(name)}, now {value}).",
                    "Keep its value, or start a new run without ckpt_path.",
                )


class ValidationBatches:
    """This rank's share of a split; over all ranks every image is counted once.

    DistributedDataParallel may exchange buffers in each forward pass, so all ranks need the same number of
    batches: a rank with fewer also gets one image from `whole`, a loader of the whole split, that is not
    counted.
    """

    def __init__(self, loader: Loader, whole: Loader, batch_size: int) -> None:
        self._loader, self._whole, self._batch_size = loader, whole, batch_size

    def __len__(self) -> int:
        count, world_size = len(self._loader), self._loader.rank.world_size
        return max(
            len(evaluation_batches(count, self._batch_size, rank, world_size)) for rank in range(world_size)
        )

    def __iter__(self) -> Iterator[ValidationBatch]:
        own = 0
        for batch in self._loader.evaluation(self._batch_size):
            own += 1
            yield ValidationBatch(batch, counted=True)
        if own < len(self):
            yield ValidationBatch(next(self._whole.evaluation(1)), counted=False)


class ImageDataModule(LightningDataModule):
    """The data of a recipe: each rank loads its share of one global batch.

    Images, their order and augmentations are the same as in `neuscale train` on any number of ranks, also
    when resumed in the middle of an epoch; each validation image is counted once. Raises UsageError or
    DataError.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.config = recipe_config(recipe)

    def prepare_data(self) -> None:
        """Download and pack missing data, in one process per node."""
        open_data(self.config, Silent())

    def setup(self, stage: str) -> None:
        """Open the data and create this rank's loaders."""
        config, trainer = self.config, self.trainer
        assert trainer is not None
        device, rank = trainer.strategy.root_device, Rank(trainer.global_rank, trainer.world_size)
        check_shares(config.train.global_batch_size, rank.world_size)
        if stage == "fit":
            check_trainer(config, trainer)
        data = open_data(config, Silent())
        if data.meta.label_sets is not None:
            raise UsageError(
                f"{data.meta.name}: an image may have several labels, which 'neuscale train' only follows.",
                "Train it with that.",
            )
        choice = choose_loader(config.data, data, device)
        check_augment(config.augment, choice)
        self.meta = data.meta
        self._training = create_loader(choice, config.data, data, "train", device, rank)
        self._validation = create_loader(choice, config.data, data, "val", device, rank)
        self._first = create_loader(choice, config.data, data, "val", device, Rank())

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches in an epoch; known after `setup`."""
        return steps_per_epoch(self.training_samples, self.config.train.global_batch_size)

    @property
    def training_samples(self) -> int:
        """Number of training images; known after `setup`."""
        return len(self._training)

    @property
    def class_counts(self) -> list[int]:
        """Number of training images of each class; known after `setup`."""
        return torch.bincount(self._training.labels.cpu(), minlength=self.meta.num_classes).tolist()

    def train_dataloader(self) -> TrainingBatches:
        """This rank's micro-batches of an epoch."""
        assert self.trainer is not None
        meta = self.meta
        return TrainingBatches(
            self._training, self.config, meta.fingerprint, self.trainer, meta.fingerprint_v1
        )

    def val_dataloader(self) -> ValidationBatches:
        """This rank's share of the validation images."""
        return ValidationBatches(self._validation, self._first, self.config.eval.batch_size)

    test_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch unchanged: the loaders create batches on the device."""
        del device, dataloader_idx
        return batch
