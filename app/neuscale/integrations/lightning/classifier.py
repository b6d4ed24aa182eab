"""The model of a recipe as a LightningModule."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from neuscale.config.model_options import OptimConfig
from neuscale.data.loaders.loader import Batch, model_size
from neuscale.data.open import open_data
from neuscale.data.sampling import derived_seed
from neuscale.errors import UsageError
from neuscale.evaluation.evaluate import share_running_statistics
from neuscale.hardware import check_compiler
from neuscale.integrations.lightning.data import ImageDataModule, ValidationBatch
from neuscale.integrations.lightning.recipe import Recipe, check_config, recipe_config
from neuscale.models.fused import choose_ops, fuse
from neuscale.models.registry import check_arch, create_model
from neuscale.models.weights import load_starting_weights
from neuscale.progress import Silent
from neuscale.training.determinism import seed_generator
from neuscale.training.drop_path import DropPathDraws
from neuscale.training.loss import TrainingLoss
from neuscale.training.lr_schedule import Span, lr_at
from neuscale.training.optim import create_optimizer
from neuscale.training.param_groups import freeze, training_mode


class ImageClassifier(LightningModule):
    """The model of a recipe, with its optimizer, schedule, loss, stochastic depth and native ops.

    `model` is the module itself; `self(images)` returns its logits. `sizes` (image size in pixels, channels,
    classes) come from the data set, or with `load_from_checkpoint` from the checkpoint. Logs `train/loss`,
    `val/loss`, `val/top1` and `val/top5` (in 0 … 1). Needs an ImageDataModule with the same recipe.
    """

    def __init__(self, config: Recipe, sizes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.config = recipe = recipe_config(config)
        check_config(recipe)
        check_arch(recipe.model)
        new = sizes is None
        if sizes is None:
            meta = open_data(recipe, Silent()).meta
            sizes = [model_size(meta, recipe.data.image_size), meta.channels, meta.num_classes]
        side, channels, classes = sizes
        self.save_hyperparameters({"config": asdict(recipe), "sizes": list(sizes)})
        self.model = create_model(recipe.model, side, channels, classes, recipe.run.seed)
        if new and recipe.model.weights is not None:
            load_starting_weights(self.model, recipe.model, side, channels, classes)
        self._frozen = freeze(self.model, recipe.train)
        self.loss = MeanMetric(nan_strategy="disable")
        self.top1 = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro", validate_args=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] for normalised images [B, C, S, S]."""
        if self.config.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.model(images)

    def setup(self, stage: str) -> None:
        """Prepare the model for the device that the Trainer has chosen."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule) or data.config != self.config:
            raise UsageError(
                "an ImageClassifier trains with an ImageDataModule of the same recipe.",
                "Give both the same words: trainer.fit(ImageClassifier(words), ImageDataModule(words)).",
            )
        config, device = self.config, self.trainer.strategy.root_device
        if config.train.precision == "tf32":
            torch.set_float32_matmul_precision("high")
        if choose_ops(config.model, device).kind == "fused":
            fuse(self.model, device, config.run.deterministic)
        if config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if stage != "fit":
            return
        if config.train.compile:
            check_compiler()
            self.model.compile()
        counts = data.class_counts if config.train.class_weights != "none" else []
        self._loss = TrainingLoss(config.train, counts, data.training_samples, device)
        self._drop_path = DropPathDraws(self.model, config.run.seed, device)
        self._steps_per_epoch = data.steps_per_epoch

    def configure_optimizers(self) -> Any:
        """Return the recipe's optimizer, and its schedule over the steps that the Trainer will do."""
        optim, steps = self.config.optim, self.trainer.estimated_stepping_batches
        if steps == float("inf"):  # no limit: until something stops it
            steps = self.config.train.epochs * self._steps_per_epoch
        optimizer = create_optimizer(optim, self.model)
        schedule = Schedule(optimizer, optim, self._steps_per_epoch, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Keep frozen modules in eval mode; Lightning restores the modes after evaluations."""
        training_mode(self.model, self._frozen)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a micro-batch."""
        del batch_idx
        config, rank = self.config, self.trainer.global_rank
        size = config.train.global_batch_size
        step, offset = divmod(batch.positions.start, size)
        if offset == rank * (size // self.trainer.world_size):  # the rank's first micro-batch of a step
            # Dropout masks differ between steps and ranks, and are the same after a resume.
            step += batch.epoch * self._steps_per_epoch
            seed_generator(self.device, derived_seed(config.run.seed, step, f"dropout {rank}"))
        self._drop_path.set(batch.epoch, batch.positions)
        loss = self._loss(self(batch.images), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as the recipe says."""
        del gradient_clip_val, gradient_clip_algorithm  # check_trainer has refused them
        norm = self.config.optim.clip_grad_norm
        if norm is None:
            return
        # Lightning lets a fused optimizer unscale gradients: too late for clipping, which it refuses then.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), norm)

    def on_validation_start(self) -> None:
        """Share running statistics, so that all ranks evaluate the model that is saved."""
        share_running_statistics(self.model)

    def validation_step(self, batch: ValidationBatch, batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        del batch_idx
        self._evaluate(batch, "val")

    def test_step(self, batch: ValidationBatch, batch_idx: int) -> None:
        """Add a batch to the test metrics."""
        del batch_idx
        self._evaluate(batch, "test")

    def _evaluate(self, batch: ValidationBatch, split: str) -> None:
        labels = batch.content.labels
        logits = self(batch.content.images).float()
        if batch.counted:
            # One loss per image: with this nan_strategy torchmetrics ignores weights.
            self.loss.update(F.cross_entropy(logits, labels, reduction="none"))
            self.top1.update(logits, labels)
            self.top5.update(logits, labels)
        for name, metric in (("loss", self.loss), ("top1", self.top1), ("top5", self.top5)):
            self.log(f"{split}/{name}", metric, on_step=False, on_epoch=True, batch_size=len(labels))


class Schedule(LRScheduler):
    """Learning rate of `lr_at` at each step, multiplied by each group's `lr_scale`."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: OptimConfig, steps_per_epoch: int, total_steps: int
    ) -> None:
        self._config, self._steps_per_epoch, self._total_steps = config, steps_per_epoch, total_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rates of the groups for the next step."""
        lr = lr_at(self._config, self.last_epoch, self._steps_per_epoch, Span(0, self._total_steps))
        return [lr * group.get("lr_scale", 1.0) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """State with the step; everything else follows from the recipe."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "_last_lr": self._last_lr}
