"""Where a run's numbers and pictures go: metrics.jsonl always, TensorBoard and Weights & Biases if wanted."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from neuscale.config import Config, config_to_yaml
from neuscale.data.loader import Loader
from neuscale.evaluation.evaluate import Evaluation
from neuscale.evaluation.stored import store_evaluation
from neuscale.runs.folder import RunFolder
from neuscale.training.meters import TIMINGS
from neuscale.training.metrics import MetricsFile


def _group(name: str) -> str:
    """The group of curves that a value belongs to."""
    if name in TIMINGS:
        return "speed"
    return "optim" if name == "lr" else "train"


class Tracker:
    """Records a run from `step` on; on a process other than the main one it does nothing."""

    def __init__(self, run: RunFolder, config: Config, classes: list[str], step: int, is_main: bool) -> None:
        self._file: MetricsFile | None = None
        self._board: Any = None
        self._wandb: Any = None
        self._classes = classes
        self._folder = run.path
        self._images_wanted = config.tracking.sample_images
        if not is_main:
            return
        self._file = MetricsFile(run.metrics_file, step)
        if config.tracking.tensorboard:
            from neuscale.training.tensorboard import TensorBoard

            self._board = TensorBoard(run.path, step)
            if step == 0:
                self._board.text("config", config_to_yaml(config))
                self._board.hyperparameters(hyperparameters(config))
        if config.tracking.wandb:
            from neuscale.training.wandb_run import WandbRun

            self._wandb = WandbRun(run, config)

    def train(self, step: int, values: dict[str, float]) -> None:
        """A point of the training curves: means since the point before, by name."""
        if self._file is None:
            return
        self._file.write("train", step, values)
        named = {f"{_group(name)}/{name}": value for name, value in values.items()}
        for place in (self._board, self._wandb):
            if place is not None:
                place.scalars(named, step)

    def evaluation(self, step: int, result: Evaluation) -> None:
        """The numbers of an evaluation, its confusion matrix and the accuracy of each class."""
        if self._file is None:
            return
        self._file.write("val", step, result.scalars())
        store_evaluation(self._folder, step, self._classes, result)
        if self._board is None and self._wandb is None:
            return
        from neuscale.training.pictures import confusion_picture

        named = {f"val/{name}": value for name, value in result.scalars().items()}
        picture = confusion_picture(result.confusion, self._classes)
        per_class = list(zip(self._classes, result.per_class(), strict=True))
        for place in (self._board, self._wandb):
            if place is not None:
                place.evaluation(named, picture, per_class, step)

    def sync(self) -> None:
        """Makes the curves up to here durable, as a checkpoint does with the rest of the run."""
        if self._file is not None:
            self._file.sync()

    def images(self, images: Tensor, loader: Loader) -> None:
        """The first training images as the model sees them."""
        if self._board is not None and self._images_wanted:
            self._board.images("train/images", images[: self._images_wanted], loader.mean, loader.std, 0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.close()


def hyperparameters(config: Config) -> dict[str, bool | int | float | str]:
    """What tells runs apart in a table: `section.field` with plain values, those that are null left out."""
    sections = {
        name: asdict(getattr(config, name)) for name in ("data", "augment", "model", "optim", "train")
    }
    named = {f"{section}.{n}": v for section, fields in sections.items() for n, v in fields.items()}
    named |= {"experiment": config.experiment, "run.seed": config.run.seed}
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in named.items()
        if value is not None
    }
