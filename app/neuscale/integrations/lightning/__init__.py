"""NeuScale's data, models and recipes with Lightning's Trainer: pip install 'neuscale[lightning]'.

    from lightning import Trainer
    from neuscale.integrations.lightning import ImageClassifier, ImageDataModule, trainer_options

    overrides = ["experiment=cifar10_swin_t", "optim.lr=5e-4"]
    trainer = Trainer(**trainer_options(overrides, devices=2))
    trainer.fit(ImageClassifier(overrides), ImageDataModule(overrides))

Losses are the same as those of `neuscale train`. The Trainer decides how long to train
(`max_epochs`, `max_steps`; the schedule ends there), in which precision, and on which devices;
loggers, callbacks and checkpoints are Lightning's. A setting that only `neuscale train` supports
raises UsageError.
"""

try:
    import lightning.pytorch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("Lightning is not installed: pip install 'neuscale[lightning]'") from error

from neuscale.integrations.lightning.classifier import ImageClassifier
from neuscale.integrations.lightning.data import ImageDataModule
from neuscale.integrations.lightning.recipe import trainer_options

__all__ = ["ImageClassifier", "ImageDataModule", "trainer_options"]
