"""The data of a recipe for Lightning's Trainer."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from neuscale.data.choose import check_augment, choose_loader, create_loader
from neuscale.data.loader import Share
from neuscale.data.order import check_shares, steps_per_epoch
from neuscale.integrations.lightning_batches import TrainingBatches, ValidationBatches
from neuscale.integrations.lightning_checks import check_trainer
from neuscale.integrations.lightning_recipe import Recipe, recipe_config
from neuscale.progress import Silent
from neuscale.training.train import open_data


class ImageDataModule(LightningDataModule):
    """The data of a recipe: each process has its share of one global batch, by its rank.

    The images, their order and augmentations are those of `neuscale train` on any number of processes, also
    from the middle of an epoch; of the validation images each is seen once. Raises UsageError or DataError.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.config = recipe_config(recipe)

    def prepare_data(self) -> None:
        """Fetches and packs what is missing, on one process of a node."""
        open_data(self.config, Silent())

    def setup(self, stage: str) -> None:
        """Opens the data and makes this process's loaders."""
        config, trainer = self.config, self.trainer
        assert trainer is not None
        device, share = trainer.strategy.root_device, Share(trainer.global_rank, trainer.world_size)
        check_shares(config.train.global_batch_size, share.processes)
        if stage == "fit":
            check_trainer(config, trainer)
        data = open_data(config, Silent())
        choice = choose_loader(config.data, data, device)
        check_augment(config.augment, choice)
        self.meta = data.meta
        self._training = create_loader(choice, config.data, data, "train", device, share)
        self._validation = create_loader(choice, config.data, data, "val", device, share)
        self._first = create_loader(choice, config.data, data, "val", device, Share())

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; known after `setup`."""
        return steps_per_epoch(self.training_samples, self.config.train.global_batch_size)

    @property
    def training_samples(self) -> int:
        """Training images; known after `setup`."""
        return len(self._training)

    def train_dataloader(self) -> TrainingBatches:
        """This process's micro-batches of an epoch."""
        assert self.trainer is not None
        return TrainingBatches(self._training, self.config, self.meta.fingerprint, self.trainer)

    def val_dataloader(self) -> ValidationBatches:
        """This process's share of the validation images."""
        return ValidationBatches(self._validation, self._first, self.config.eval.batch_size)

    test_dataloader = val_dataloader

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The loaders make their batches on the device."""
        del device, dataloader_idx
        return batch
